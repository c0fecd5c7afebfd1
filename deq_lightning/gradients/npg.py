"""Neumann-series phantom gradient."""

import torch
from torch import Tensor

from deq_lightning.configured import NO_DAMPING, whole, within
from deq_lightning.gradients.adjoint import attach_adjoint
from deq_lightning.gradients.base import ONE_STEP, GradientStrategy
from deq_lightning.gradients.jacobian import Product
from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State


class NPG(GradientStrategy):
    r"""Neumann-series phantom gradient: a truncated series in place of the inverse.

    Replaces :math:`(I - J^\top)^{-1} g` by :math:`\lambda \sum_{i<k} B^i g` at :math:`z^*`, where λ is `damping` and
    :math:`B = \lambda J^\top + (1-\lambda) I` (one factor λ, as in Eq. 17; the paper's Algorithm 3, read literally, has
    two). Equal to `UPG` at an exact fixed point, with the memory of one evaluation of the cell whatever `k` is.

    Args:
        pretrain_steps: optimizer steps of plain unrolling before the equilibrium is solved.
        unroll_steps: applications of the cell in that stage.
        k: terms of the series, 1 or more; costs k − 1 vector-Jacobian products.
        damping: λ in (0, 1]; 1 means no damping, smaller is more stable and needs more terms.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Geng et al., "On training implicit models", 2021, arXiv:2111.05177, Eq. 17 and Algorithm 3.
    """

    def __init__(self, pretrain_steps: int = 0, unroll_steps: int = 10, k: int = 5, damping: float = 0.5) -> None:
        super().__init__(pretrain_steps, unroll_steps)
        whole(1, ONE_STEP, k=k)
        within("(0, 1]", NO_DAMPING, damping=damping)
        self.k = k
        self.damping = damping

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return f(z) with the truncated Neumann series as its adjoint.

        Second derivatives are those of this gradient's formula, in which z is a constant.
        """
        return attach_adjoint(f, z, self._series)

    def _series(self, jacobian: Product, g: Tensor) -> Tensor:
        """Sum the series by Horner's scheme: w ← g + B w, k − 1 times."""
        w = g
        for _ in range(self.k - 1):
            w = g + torch.lerp(w, jacobian.transposed(w), self.damping)
        return self.damping * w
