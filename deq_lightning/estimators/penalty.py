"""Regularisation of the Jacobian at the equilibrium."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deq_lightning.configured import Configured, at_least, is_number, is_whole, whole, within
from deq_lightning.gradients.jacobian import Jacobian
from deq_lightning.models import Equilibrium
from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State


def jacobian_penalty(f: FixedPointMap, z: State, probes: int = 1) -> Tensor:
    """Estimate ‖J‖²_F / dim at `z`, the mean squared length of the Jacobian's rows, differentiably.

    An unbiased estimate by Hutchinson's probes: E ‖Jᵀε‖² = ‖J‖²_F for ε ~ N(0, I). Its gradient goes to the parameters
    and the injection of f, not to `z`, and differentiates the cell twice.

    Args:
        f: the map.
        z: where to linearise it.
        probes: random vectors per sample, 1 or more; one vector-Jacobian product each.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: if `probes` is below 1.

    References:
        Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization", 2021, arXiv:2106.14342.
    """
    whole(1, probes=probes)
    jacobian = Jacobian(f, z)
    products = [jacobian.transposed(torch.randn_like(jacobian.fz)) for _ in range(probes)]
    return torch.stack([product.square().mean() for product in products]).mean()


class JacobianPenalty(Configured):
    """The Jacobian penalty as a term of the loss, with its weight, frequency and schedule.

    Keeps the cell contractive, so that solves stay short and phantom gradients close to the exact one. It is applied in
    the unrolled stage as well, at the last state.

    Args:
        weight: factor of the penalty from the first step, 0 or more.
        frequency: probability that a step computes the penalty, in (0, 1]; below 1 it costs that much less. The
            published recipes do not rescale for it, and neither does this.
        probes: random vectors per sample, 1 or more.
        milestones: other weights, by the optimizer step from which they hold: `{30000: 2.1, 60000: 0}`. None: no
            change.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization", 2021, arXiv:2106.14342.
    """

    def __init__(
        self,
        weight: float = 1.0,
        frequency: float = 1.0,
        probes: int = 1,
        milestones: dict[int, float] | None = None,
    ) -> None:
        at_least(0, weight=weight)
        whole(1, probes=probes)
        within("(0, 1]", "For no penalty leave it out.", frequency=frequency)
        if milestones is not None and not _are_weights(milestones):
            raise ValueError(f"`milestones` must map steps of 0 or more to weights of 0 or more, got {milestones}.")
        self.weight = weight
        self.frequency = frequency
        self.probes = probes
        self.milestones = milestones

    def weight_at(self, step: int) -> float:
        """Return the weight that holds at an optimizer step."""
        reached = [start for start in self.milestones or {} if start <= step]
        return self.milestones[max(reached)] if self.milestones and reached else self.weight

    def __call__(self, equilibria: Sequence[Equilibrium], step: int) -> Tensor:
        """Return the weighted mean over the equilibria, or zero if this step skips the penalty.

        Args:
            equilibria: the equilibria of a forward pass.
            step: the optimizer step, for the schedule.
        """
        weight = self.weight_at(step)
        if weight == 0 or (self.frequency < 1 and torch.rand(()).item() >= self.frequency):
            return torch.zeros(())
        return weight * torch.stack([jacobian_penalty(one.f, one.z, self.probes) for one in equilibria]).mean()


def _are_weights(milestones: Any) -> bool:
    """Say whether it maps steps to weights."""
    if not isinstance(milestones, dict) or not all(map(is_whole, milestones)):
        return False
    return all(is_number(number) and number >= 0 for number in (*milestones, *milestones.values()))
