"""Anderson acceleration."""

import torch
from torch import Tensor

from deq_lightning.configured import NO_DAMPING, at_least, whole, within
from deq_lightning.solvers.algebra import NO_HISTORY, combination, inner_products
from deq_lightning.solvers.base import Advance, Keep, Solver

LEAST_RIDGE = 8  # in roundings of a 1 on the diagonal: a smaller one would be lost in the products of residuals


class Anderson(Solver):
    r"""Takes the combination of the last iterates whose residual is smallest (Anderson acceleration, type II).

    With residuals :math:`g_i = f(z_i) - z_i`, finds the weights that sum to one and minimise
    :math:`\|\sum_i \alpha_i g_i\|`, and goes to :math:`\sum_i \alpha_i (z_i + \beta g_i)`, where β is `damping`.

    Args:
        max_steps: maximum evaluations of f, 1 or more.
        rtol: a sample has converged when ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖.
        atol: absolute part of the tolerance.
        check_every: evaluations between checks of the stop test.
        history: iterates remembered, 1 or more. Memory: two states each.
        damping: β in (0, 1]; 1 means no damping.
        ridge: Tikhonov term of the small system, relative to each residual's own scale, so that acceleration does not
            fade as the residual falls and the answer does not depend on the units of the state. 0 or more; a few
            roundings of the dtype are the least it is, because less would change nothing.
        eval_max_steps: maximum evaluations of f when a model is in evaluation mode; None: as in training.
        keep: which iterate a spent budget hands back, as for `Solver`.
        min_steps: lowest of the random budgets of training, as for `Solver`. None: always `max_steps`.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49(4), 2011.
        Bai et al., "Deep equilibrium models", 2019, arXiv:1909.01377.
    """

    def __init__(
        self,
        max_steps: int = 30,
        rtol: float = 1e-3,
        atol: float = 0.0,
        check_every: int = 4,
        history: int = 12,
        damping: float = 1.0,
        ridge: float = 1e-8,
        eval_max_steps: int | None = None,
        keep: Keep = "best",
        min_steps: int | None = None,
    ) -> None:
        super().__init__(max_steps, rtol, atol, check_every, eval_max_steps, keep, min_steps)
        whole(1, NO_HISTORY, history=history)
        self.history = history
        within("(0, 1]", NO_DAMPING, damping=damping)
        self.damping = damping
        at_least(0, ridge=ridge)
        self.ridge = ridge

    def start(self, z: Tensor) -> Advance:
        """Begin a solve with room for `history` iterates, or for the whole budget where that is smaller."""
        return Mixing(z, min(self.history, self.budget), self.damping, self.ridge)


class Mixing:
    """The memory of one Anderson solve: residuals, their Gram matrix, and the points to be combined.

    The Gram matrix is kept with a unit diagonal, which makes the ridge relative to every residual.

    Args:
        z: (batch, dim) gives shapes, dtype and device.
        length: iterates remembered.
        damping: fraction of the residual added to an iterate; 1 means no damping.
        ridge: relative Tikhonov term.
    """

    def __init__(self, z: Tensor, length: int, damping: float, ridge: float) -> None:
        batch, dim = z.shape
        self.length = length
        self.damping = damping
        self.residuals = z.new_empty(batch, length, dim)
        self.points = z.new_empty(batch, length, dim)
        self.gram = z.new_empty(batch, length, length)
        self.scale = z.new_empty(batch, length)  # one over each residual's norm
        self.eye = torch.eye(length, dtype=z.dtype, device=z.device)
        self.ridge = max(ridge, LEAST_RIDGE * torch.finfo(z.dtype).eps) * self.eye
        self.tiny = torch.finfo(z.dtype).tiny
        self.count = 0

    def __call__(self, z: Tensor, fz: Tensor, gap: Tensor) -> Tensor:
        """Remember one evaluation and return the next iterate."""
        slot = self.count % self.length
        self.count += 1
        used = min(self.count, self.length)
        self.residuals[:, slot] = gap
        self.points[:, slot] = fz if self.damping == 1 else torch.add(z, gap, alpha=self.damping)
        row = inner_products(self.residuals[:, :used], gap)
        self.scale[:, slot] = row[:, slot].clamp_min(self.tiny).rsqrt()
        scale = self.scale[:, :used]
        row = torch.addcmul(self.ridge[slot, :used], row * scale, scale[:, slot : slot + 1])
        self.gram[:, slot, :used] = row
        self.gram[:, :used, slot] = row
        weights = self._weights(self.gram[:, :used, :used], scale)
        # A singular system (two equal residuals, say) gives no weights: take the plain step instead.
        sound = weights.abs().amax(dim=1, keepdim=True) < torch.inf
        return combination(torch.where(sound, weights, self.eye[slot, :used]), self.points[:, :used])

    def select(self, rows: Tensor) -> None:
        """Keep the memory of these samples only."""
        self.residuals, self.points = self.residuals[rows], self.points[rows]
        self.gram, self.scale = self.gram[rows], self.scale[rows]

    def _weights(self, gram: Tensor, scale: Tensor) -> Tensor:
        """Minimise ‖Σ αᵢ gᵢ‖ with Σ αᵢ = 1; (batch, used)."""
        solved, _ = torch.linalg.solve_ex(gram, scale[:, :, None])
        weights = solved[:, :, 0] * scale
        return weights / weights.sum(dim=1, keepdim=True)
