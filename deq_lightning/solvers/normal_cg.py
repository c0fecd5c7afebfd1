"""Conjugate gradients on the normal equations, for adjoint systems."""

from collections.abc import Callable

import torch
from torch import Tensor

from deq_lightning.configured import CombinationError
from deq_lightning.solvers.base import Advance, Solver
from deq_lightning.solvers.solution import FixedPointMap

MISPLACED = (
    "`NormalCG` solves the adjoint systems of `Implicit`, whose map brings a transposed product. As the model's solver "
    "use `Anderson`, with `reuse_inverse` use `GMRES`."
)


class NormalCG(Solver):
    r"""Conjugate gradients on :math:`A^\top A w = A^\top g`, the Jacobian-based baseline of the JFB paper.

    For `Implicit` only: :math:`A = I - J^\top`, and the adjoint map supplies the product with :math:`A^\top` in forward
    mode. Every step costs one evaluation and one such product. Squaring the system squares its condition number, so
    `GMRES` needs fewer products; but this method needs no history and converges for every A.

    The published baseline stops at an absolute tolerance that exceeds the right-hand side on MNIST, so it stops after
    one iteration; here the tolerance is relative to ‖g‖.

    Args:
        max_steps: maximum number of vector-Jacobian products, and of Jacobian-vector products, 1 or more.
        rtol: a sample has converged when ‖g − A w‖ ≤ atol + rtol·‖g‖.
        atol: absolute part of the tolerance.
        check_every: steps between checks of the stop test.
        eval_max_steps: unused, because adjoint systems are not solved in evaluation.
        keep: which iterate a spent budget hands back, as for `Solver`.
        min_steps: unused, for the same reason as `eval_max_steps`.

    Raises:
        ValueError: if an argument is out of its range.
        CombinationError: if the map has no transposed product.

    References:
        Fung et al., "JFB: Jacobian-free backpropagation for implicit networks", AAAI 2022, arXiv:2103.12803.
        Saad, "Iterative methods for sparse linear systems", 2nd edition, 2003, algorithm 8.4.
    """

    def start(self, z: Tensor) -> Advance:
        """Refuse: without the map there is no transposed product."""
        del z
        raise CombinationError(MISPLACED)

    def start_on(self, f: FixedPointMap, z: Tensor) -> Advance:
        """Begin a solve of an affine `f` that has `transposed(v)`, the product with its transposed linear part."""
        if not hasattr(f, "transposed"):
            return self.start(z)
        return NormalDirections(f.transposed)


class NormalDirections:
    """The memory of one solve: the minimiser, its residual, and the direction of the next step.

    f is evaluated where the last stride would lead, so that the iterate is measured. Since f is affine, the change of
    the residual gives the image of the direction, and with it the right stride. An error in the residual carried along
    enters the next one with the relative change of the stride, which may enlarge it, so every `refresh_every` strides f
    is evaluated at the minimiser itself.

    Args:
        transposed: v ↦ J v, where f(w) = Jᵀ w + g.
    """

    refresh_every = 8

    def __init__(self, transposed: Callable[[Tensor], Tensor]) -> None:
        self.transposed = transposed
        self.point: Tensor | None = None
        self.strides = 0
        self.refreshing = False

    def __call__(self, z: Tensor, fz: Tensor, gap: Tensor) -> Tensor:
        """Use the evaluation at the last probe and return the next one."""
        del fz
        if self.point is None:
            self.point, self.residual = z, gap
            self.stride = torch.ones_like(z[:, :1])
            self.direction, self.square = self._slope()
        elif self.refreshing:
            self.residual, self.refreshing = gap, False
            self._turn()
        else:
            image = (self.residual - gap) / self.stride  # A p
            stride = self.square / _nonzero(image.square().sum(dim=1, keepdim=True))
            self.point = self.point + stride * self.direction
            self.residual = self.residual - stride * image
            self.stride = torch.where(stride > 0, stride, 1)
            self.strides += 1
            self.refreshing = self.strides % self.refresh_every == 0
            if self.refreshing:
                return self.point
            self._turn()
        return self.point + self.stride * self.direction

    def _turn(self) -> None:
        """Turn to the next direction, conjugate to the last."""
        slope, square = self._slope()
        self.direction = slope + square / _nonzero(self.square) * self.direction
        self.square = square

    def _slope(self) -> tuple[Tensor, Tensor]:
        """Return Aᵀ r and the square of its length."""
        slope = self.residual - self.transposed(self.residual)
        return slope, slope.square().sum(dim=1, keepdim=True)


def _nonzero(square: Tensor) -> Tensor:
    """Replace zero by infinity: nothing is left to do there."""
    return torch.where(square > 0, square, torch.inf)
