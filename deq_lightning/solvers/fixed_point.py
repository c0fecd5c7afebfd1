"""Plain and damped fixed-point iteration."""

import torch
from torch import Tensor

from deq_lightning.configured import NO_DAMPING, within
from deq_lightning.solvers.base import Advance, Solver


class FixedPointIteration(Solver):
    r"""Iterates z ← (1 − damping)·z + damping·f(z).

    Converges where the spectral radius of the (damped) Jacobian is below 1. Has the cheapest algebra and least memory.

    Args:
        max_steps: maximum evaluations of f, 1 or more.
        rtol: a sample has converged when ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖; the residual is never scaled by `damping`.
        atol: absolute part of the tolerance.
        check_every: evaluations between checks of the stop test.
        damping: fraction of the step to take, in (0, 1]; 1 means no damping: plain (Picard) iteration.
        eval_max_steps: maximum evaluations of f when a model is in evaluation mode; None: as in training.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        max_steps: int = 30,
        rtol: float = 1e-3,
        atol: float = 0.0,
        check_every: int = 4,
        damping: float = 1.0,
        eval_max_steps: int | None = None,
    ) -> None:
        super().__init__(max_steps, rtol, atol, check_every, eval_max_steps)
        within("(0, 1]", NO_DAMPING, damping=damping)
        self.damping = damping

    def start(self, z: Tensor) -> Advance:
        """Begin a solve, which needs no memory."""
        del z
        return Relaxation(self.damping)


class Relaxation:
    """The damped step.

    Args:
        damping: fraction of the step to take; 1 means no damping.
    """

    def __init__(self, damping: float) -> None:
        self.damping = damping

    def __call__(self, z: Tensor, fz: Tensor, gap: Tensor) -> Tensor:
        """Return the next iterate."""
        return fz if self.damping == 1 else torch.add(z, gap, alpha=self.damping)

    def select(self, rows: Tensor) -> None:
        """Do nothing: there is no memory to restrict."""
