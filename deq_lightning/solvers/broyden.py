"""Broyden's method with a bounded history."""

import torch
from torch import Tensor

from deq_lightning.configured import whole
from deq_lightning.solvers.algebra import NO_HISTORY, combination, inner_products
from deq_lightning.solvers.base import Advance, Keep, Solver


class Broyden(Solver):
    r"""Quasi-Newton method on g(z) = f(z) − z with Broyden's first ("good") update of the inverse Jacobian.

    The inverse is −I plus `history` outer products, so a step costs one product with the history and one with its
    transpose; the line search, which the literature leaves switched off, is not implemented.

    Args:
        max_steps: maximum evaluations of f, 1 or more.
        rtol: a sample has converged when ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖.
        atol: absolute part of the tolerance.
        check_every: evaluations between checks of the stop test.
        history: pairs (outer products) remembered, 1 or more; once they are full, all but the newest pair are
            forgotten. Memory: two states each, never more than the budget needs.
        eval_max_steps: maximum evaluations of f when a model is in evaluation mode; None: as in training.
        keep: which iterate a spent budget hands back, as for `Solver`.
        min_steps: lowest of the random budgets of training, as for `Solver`. None: always `max_steps`.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Broyden, "A class of methods for solving nonlinear simultaneous equations", Math. Comp. 19, 1965.
        Bai et al., "Multiscale deep equilibrium models", 2020, arXiv:2006.08656.
    """

    def __init__(
        self,
        max_steps: int = 30,
        rtol: float = 1e-3,
        atol: float = 0.0,
        check_every: int = 4,
        history: int = 12,
        eval_max_steps: int | None = None,
        keep: Keep = "best",
        min_steps: int | None = None,
    ) -> None:
        super().__init__(max_steps, rtol, atol, check_every, eval_max_steps, keep, min_steps)
        whole(1, NO_HISTORY, history=history)
        self.history = history

    def start(self, z: Tensor) -> Advance:
        """Begin a solve with room for `history` pairs, or for the whole budget where that is smaller."""
        return InverseUpdates(z, min(self.history, max(self.budget - 1, 1)))


class InverseUpdates:
    """The memory of one Broyden solve: the inverse Jacobian −I + Σ uᵢ vᵢᵀ and the last step.

    Args:
        z: (batch, dim) gives shapes, dtype and device.
        length: pairs remembered.
    """

    def __init__(self, z: Tensor, length: int) -> None:
        batch, dim = z.shape
        self.length = length
        self.left = z.new_empty(batch, length, dim)
        self.right = z.new_empty(batch, length, dim)
        self.tiny = torch.finfo(z.dtype).tiny
        self.count = 0
        self.step: Tensor | None = None
        self.gap: Tensor | None = None

    def __call__(self, z: Tensor, fz: Tensor, gap: Tensor) -> Tensor:
        """Update the inverse with the step just evaluated and return the next iterate."""
        del fz
        step = gap if self.step is None or self.gap is None else self._quasi_newton_step(self.step, gap, self.gap)
        self.step, self.gap = step, gap
        return z + step

    def transposed_inverse(self, g: Tensor) -> Tensor:
        """Return −Hᵀ g, an estimate of (I − Jᵀ)⁻¹ g, (batch, dim)."""
        left, right = self.left[:, : self.count], self.right[:, : self.count]
        return g - combination(inner_products(left, g), right)

    def select(self, rows: Tensor) -> None:
        """Keep the memory of these samples only."""
        self.left, self.right = self.left[rows], self.right[rows]
        if self.step is not None and self.gap is not None:
            self.step, self.gap = self.step[rows], self.gap[rows]

    def _quasi_newton_step(self, step: Tensor, gap: Tensor, last_gap: Tensor) -> Tensor:
        """Return −H g with H updated by the secant condition H (g − g_last) = step.

        The step was −H g_last, so the update's left vector (step − H (g − g_last)) / (vᵀ (g − g_last)) is
        −H g / (vᵀ (g − g_last)), and H is applied once.
        """
        if self.count == self.length:
            return self._restart(step, gap, last_gap)
        used = self.count
        applied = -gap  # H g, before the update
        right = -step  # Hᵀ step
        if used:
            applied = applied + combination(inner_products(self.right[:, :used], gap), self.left[:, :used])
            right = right + combination(inner_products(self.left[:, :used], step), self.right[:, :used])
        left = -applied / self._nonzero(torch.linalg.vecdot(right, gap - last_gap))
        next_step = -applied - left * torch.linalg.vecdot(right, gap)[:, None]
        self.left[:, used], self.right[:, used] = left, right
        self.count += 1
        return next_step

    def _restart(self, step: Tensor, gap: Tensor, last_gap: Tensor) -> Tensor:
        """Forget all pairs but that of this step, made for H = −I, and return −H g.

        Dropping the oldest pair instead would keep more, but every pair was made for an inverse that contained the
        older ones: the iteration then runs away even on contractions.
        """
        change = gap - last_gap
        left = (step + change) / self._nonzero(-torch.linalg.vecdot(step, change))
        self.left[:, 0], self.right[:, 0] = left, -step
        self.count = 1
        return gap + left * torch.linalg.vecdot(step, gap)[:, None]

    def _nonzero(self, denominator: Tensor) -> Tensor:
        """Replace a vanishing denominator by infinity: the update is then skipped."""
        return torch.where(denominator.abs() > self.tiny, denominator, torch.inf)[:, None]
