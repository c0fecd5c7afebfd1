"""Operator splittings as cells: what the monotone networks share."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import above, one_of
from deq_lightning.models.base import ImplicitModel
from deq_lightning.models.layers.frozen import Freezable
from deq_lightning.models.monotone.operators import MonotoneMap, MonotoneOperator, Tiers
from deq_lightning.precision import full_precision
from deq_lightning.solvers import FixedPointIteration, Solver
from deq_lightning.state import State, parts

Splitting = Literal["peaceman_rachford", "forward_backward"]


def interior_relu(z: Tensor) -> Tensor:
    """Return ReLU, with a border of one pixel set to zero; the proximal operator of z ≥ 0 and border = 0."""
    return F.pad(F.relu(z[..., 1:-1, 1:-1]), (1, 1, 1, 1))


class MonotoneModel(ImplicitModel, Freezable):
    """What the monotone networks share: the equation z = prox(W z + U x + b), and two splittings that solve it.

    The cell is a step of the splitting, so that ordinary solvers iterate it and ordinary strategies differentiate it.
    `alpha` is a buffer: it can be tuned as training goes (`SplittingTuner`), and checkpoints carry it. It changes how
    fast the equilibrium is found, not which.

    Args:
        lift: gives U x + b, which enters the first tier.
        monotone: W.
        head: from the last tier of z to the prediction.
        splitting: which one; see `MON`.
        alpha: its step, above 0.
        solver: finds the equilibrium. None: `FixedPointIteration(max_steps=300)`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    prox: Callable[[Tensor], Tensor] = staticmethod(F.relu)
    alpha: Tensor

    def __init__(
        self,
        lift: nn.Module,
        monotone: MonotoneOperator,
        head: nn.Module,
        splitting: Splitting,
        alpha: float,
        solver: Solver | None,
    ) -> None:
        super().__init__(solver or FixedPointIteration(max_steps=300))
        one_of(get_args(Splitting), splitting=splitting)
        above(0, alpha=alpha)
        self.splitting = splitting
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.lift = lift
        self.monotone = monotone
        self.head = head
        self.prepared: tuple[Tensor, MonotoneMap] | None = None

    def freeze(self) -> None:
        """Compute W, and V where it is needed, with their graphs where gradients are on."""
        self.prepared = self._prepare()

    def _prepare(self) -> tuple[Tensor, MonotoneMap]:
        alpha = self.alpha.clone()  # a map that is kept must not change when `alpha` is tuned
        with full_precision(alpha.device.type):  # an inverse in half precision is none
            return alpha, self.monotone.prepare(alpha if self.splitting == "peaceman_rachford" else None)

    def inject(self, x: Tensor) -> Tensor:
        """Return U x + b."""
        return self.lift(x)

    def cell(self, z: State, u: Tensor) -> State:
        """Return the next iterate of the splitting."""
        alpha, monotone = self.prepared or self._prepare()
        step = self._forward_backward if self.splitting == "forward_backward" else self._peaceman_rachford
        tiers = step(parts(z), u, alpha, monotone)
        return tiers if isinstance(z, tuple) else tiers[0]

    def _forward_backward(self, z: Tiers, u: Tensor, alpha: Tensor, w: MonotoneMap) -> Tiers:
        first, *rest = w.product(z)
        affine = (first + u, *rest)
        return tuple(self.prox((1 - alpha) * old + alpha * new) for old, new in zip(z, affine, strict=True))

    def _peaceman_rachford(self, z: Tiers, u: Tensor, alpha: Tensor, w: MonotoneMap) -> Tiers:
        reflected = tuple(2 * self.prox(part) - part for part in z)
        resolved = w.resolvent((reflected[0] + alpha * u, *reflected[1:]))
        return tuple(2 * new - old for new, old in zip(resolved, reflected, strict=True))

    def readout(self, z: State) -> Tensor:
        """Return the logits."""
        return self.head(self.prox(parts(z)[-1]))
