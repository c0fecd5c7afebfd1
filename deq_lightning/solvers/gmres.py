"""Generalised minimal residual method for affine maps."""

import torch
from torch import Tensor

from deq_lightning.configured import whole
from deq_lightning.solvers.algebra import NO_HISTORY, combination, inner_products
from deq_lightning.solvers.base import Advance, Keep, Solver


class GMRES(Solver):
    r"""Minimises the residual of an *affine* map over its Krylov space; meant for adjoint systems w = Jᵀw + g.

    Uses the form of GMRES that keeps directions and their images (generalised conjugate residuals): every evaluation is
    made at a usable iterate, so residuals are measured, not estimated. Once the history is full, it restarts:
    forgetting only the oldest direction can stall for good. On a map that is not affine, the answer still comes with
    its true residual.

    Args:
        max_steps: maximum evaluations of f (for an adjoint system: vector-Jacobian products), 1 or more.
        rtol: a sample has converged when ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖.
        atol: absolute part of the tolerance.
        check_every: evaluations between checks of the stop test.
        history: directions remembered before it restarts, 1 or more. Memory: two states each.
        eval_max_steps: maximum evaluations of f when a model is in evaluation mode; None: as in training.
        keep: which iterate a spent budget hands back, as for `Solver`.
        min_steps: lowest of the random budgets of training, as for `Solver`. None: always `max_steps`.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Saad and Schultz, "GMRES", SIAM J. Sci. Stat. Comput. 7(3), 1986.
        Eisenstat, Elman and Schultz, "Variational iterative methods for nonsymmetric systems of linear equations",
        SIAM J. Numer. Anal. 20(2), 1983.
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
        """Begin a solve with room for `history` directions, or for the whole budget where that is smaller."""
        return ConjugateResiduals(z, min(self.history, self.budget))


class ConjugateResiduals:
    """The memory of one solve of A x = b with A = I − J: directions pᵢ whose images A pᵢ are orthonormal.

    `point` is the minimiser so far and `residual` its residual b − A x; f is evaluated a probe away from it.

    Args:
        z: (batch, dim) gives shapes, dtype and device.
        length: directions remembered.
    """

    def __init__(self, z: Tensor, length: int) -> None:
        batch, dim = z.shape
        self.length = length
        self.directions = z.new_empty(batch, length, dim)
        self.images = z.new_empty(batch, length, dim)
        self.tiny = torch.finfo(z.dtype).tiny
        self.count = 0
        self.point: Tensor | None = None
        self.residual: Tensor | None = None

    def __call__(self, z: Tensor, fz: Tensor, gap: Tensor) -> Tensor:
        """Use the evaluation at the last probe and return the next one."""
        if self.point is None or self.residual is None:
            self.point, self.residual = z, gap
            return fz
        direction = z - self.point
        image = self.residual - gap  # A p: how much the residual fell along the probe
        direction, image = self._orthonormalise(direction, image)
        stride = torch.linalg.vecdot(image, self.residual)[:, None]
        norm = torch.linalg.vector_norm(self.residual, dim=1, keepdim=True)
        if self.count % self.length:
            self.point = self.point + stride * direction
            self.residual = self.residual - stride * image
        else:
            # From what was just measured: a residual carried along drifts away from that of `point`, and its error
            # would enter every later image.
            strides = inner_products(self.images, gap)
            self.point = z + combination(strides, self.directions)
            self.residual = gap - combination(strides, self.images)
        # The residual is the best next probe unless it hardly fell (A is close to a rotation, say): then it would only
        # repeat a direction already used, and the newest image carries on the Krylov space.
        stagnates = stride.abs() <= 1e-2 * norm
        return self.point + torch.where(stagnates, norm * image, self.residual)

    def select(self, rows: Tensor) -> None:
        """Keep the memory of these samples only."""
        self.directions, self.images = self.directions[rows], self.images[rows]
        if self.point is not None and self.residual is not None:
            self.point, self.residual = self.point[rows], self.residual[rows]

    def _orthonormalise(self, direction: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Make the image orthogonal to those remembered and of unit length, and remember the pair.

        Projecting twice keeps the images orthogonal to working precision where one pass loses digits.
        """
        slot = used = self.count % self.length  # 0 once the history is full
        for _ in range(2 if used else 0):
            overlap = inner_products(self.images[:, :used], image)
            image = image - combination(overlap, self.images[:, :used])
            direction = direction - combination(overlap, self.directions[:, :used])
        scale = torch.linalg.vector_norm(image, dim=1, keepdim=True).clamp_min(self.tiny)
        self.count += 1
        self.directions[:, slot], self.images[:, slot] = direction / scale, image / scale
        return self.directions[:, slot], self.images[:, slot]
