"""Plain and damped fixed-point iteration."""

import torch
from torch import Tensor

from deq_lightning.configured import NO_DAMPING, at_least, within
from deq_lightning.solvers.base import Advance, Keep, Solver


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
        keep: which iterate a spent budget hands back, as for `Solver`.
        min_steps: lowest of the random budgets of training, as for `Solver`. None: always `max_steps`.
        noise: standard deviation of the normal noise that every step in training mode adds to each entry of the state,
            so that the model learns to return to its equilibrium; 0: none.
        eval_noise: whether it is added in evaluation mode too.

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
        keep: Keep = "best",
        min_steps: int | None = None,
        noise: float = 0.0,
        eval_noise: bool = False,
    ) -> None:
        super().__init__(max_steps, rtol, atol, check_every, eval_max_steps, keep, min_steps)
        within("(0, 1]", NO_DAMPING, damping=damping)
        at_least(0, noise=noise)
        self.damping = damping
        self.noise = noise
        self.eval_noise = eval_noise

    def for_mode(self, training: bool) -> Solver:
        """Return the solver as a model uses it in training or in evaluation mode, where there is no noise."""
        solver = super().for_mode(training)
        return solver if training or self.eval_noise or self.noise == 0 else solver.changed(noise=0.0)

    def start(self, z: Tensor) -> Advance:
        """Begin a solve, which needs no memory."""
        del z
        return Relaxation(self.damping, self.noise)


class Relaxation:
    """The damped step, with noise.

    Args:
        damping: fraction of the step to take; 1 means no damping.
        noise: standard deviation of what is added to each entry.
    """

    def __init__(self, damping: float, noise: float = 0.0) -> None:
        self.damping = damping
        self.noise = noise

    def __call__(self, z: Tensor, fz: Tensor, gap: Tensor) -> Tensor:
        """Return the next iterate."""
        step = fz if self.damping == 1 else torch.add(z, gap, alpha=self.damping)
        return step if self.noise == 0 else torch.add(step, torch.randn_like(step), alpha=self.noise)

    def select(self, rows: Tensor) -> None:
        """Do nothing: there is no memory to restrict."""
