"""Unrolled phantom gradient."""

import torch
from torch.utils.checkpoint import checkpoint

from deq_lightning.configured import NO_DAMPING, whole, within
from deq_lightning.gradients.base import ONE_STEP, GradientStrategy
from deq_lightning.solvers import FixedPointMap
from deq_lightning.solvers.transforms import transformed
from deq_lightning.state import State, mix


class UPG(GradientStrategy):
    r"""Unrolled phantom gradient: backpropagate through a few damped steps that start at the fixed point.

    From a detached :math:`z^*`, takes :math:`z \leftarrow (1-\lambda) z + \lambda f(z)` `k` times; λ is `damping`.
    Cheap and biased; usually the first thing to try. The prediction uses the state after the k steps, which also
    refines a fixed point that was not solved exactly. For the exact gradient use `Implicit`.

    Args:
        pretrain_steps: optimizer steps of plain unrolling before the equilibrium is solved.
        unroll_steps: applications of the cell in that stage.
        k: damped steps, 1 or more. Memory grows linearly with it, unless `checkpoint` is set.
        damping: λ in (0, 1]; 1 means no damping, smaller is more stable and needs more steps.
        checkpoint: keep the graph of one step at a time, for one more evaluation of the cell per step in backward.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Geng et al., "On training implicit models", 2021, arXiv:2111.05177, Eq. 16.
    """

    def __init__(
        self,
        pretrain_steps: int = 0,
        unroll_steps: int = 10,
        k: int = 5,
        damping: float = 0.5,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(pretrain_steps, unroll_steps)
        whole(1, ONE_STEP, k=k)
        within("(0, 1]", NO_DAMPING, damping=damping)
        self.k = k
        self.damping = damping
        self.checkpoint = checkpoint

    @property
    def evaluations(self) -> int:
        """Evaluations of the map in a forward pass besides the solver's."""
        return super().evaluations if self.unrolled else self.k

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return the state after `k` damped steps from `z`, with their graph."""

        def step(z: State) -> State:
            return mix(z, f(z), self.damping)

        recompute = self.checkpoint and torch.is_grad_enabled() and not transformed()  # they know no checkpoints
        for _ in range(self.k):
            z = checkpoint(step, z, use_reentrant=False) if recompute else step(z)
        return z
