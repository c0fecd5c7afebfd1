"""Neumann-series phantom gradient."""

import torch
from torch import Tensor

from deq_lightning.configured import NO_DAMPING, whole, within
from deq_lightning.gradients.adjoint import attach_adjoint
from deq_lightning.gradients.base import ONE_STEP, GradientStrategy
from deq_lightning.gradients.jacobian import Product
from deq_lightning.solvers import FixedPointMap
from deq_lightning.solvers.transforms import transformed
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
        rtol: in [0, 1); above 0 a sample's series ends with a term of at most `rtol` times the sum, and after `k` terms
            at the latest. Where the terms grow beyond ‖g‖, twice in a row, it has no limit and ends before them. The
            error may be above `rtol` by a factor of about ρ/(1 − ρ), with ρ the spectral radius of B. 0: `k` terms.

    Attributes:
        terms: with `rtol`, (batch,) the terms that the samples of the last backward pass needed.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Geng et al., "On training implicit models", 2021, arXiv:2111.05177, Eq. 17 and Algorithm 3.
    """

    def __init__(
        self,
        pretrain_steps: int = 0,
        unroll_steps: int = 10,
        k: int = 5,
        damping: float = 0.5,
        rtol: float = 0.0,
    ) -> None:
        super().__init__(pretrain_steps, unroll_steps)
        whole(1, ONE_STEP, k=k)
        within("(0, 1]", NO_DAMPING, damping=damping)
        within("[0, 1)", "At 1 the series would end with its first term: use `JFB`.", rtol=rtol)
        self.k = k
        self.damping = damping
        self.rtol = rtol
        self.terms: Tensor | None = None

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return f(z) with the truncated Neumann series as its adjoint.

        Second derivatives are those of this gradient's formula, in which z is a constant.
        """
        return attach_adjoint(f, z, self._as_needed if self.rtol > 0 else self._series)

    def _series(self, jacobian: Product, g: Tensor) -> Tensor:
        """Sum the series by Horner's scheme: w ← g + B w, k − 1 times."""
        w = g
        for _ in range(self.k - 1):
            w = g + torch.lerp(w, jacobian.transposed(w), self.damping)
        return self.damping * w

    def _as_needed(self, jacobian: Product, g: Tensor) -> Tensor:
        """Sum the series term by term, for each sample as far as it needs it."""
        term = total = before = g
        first = size = torch.linalg.vector_norm(g, dim=1)
        running, grew = torch.ones_like(size, dtype=torch.bool), torch.zeros_like(size, dtype=torch.bool)
        terms = torch.ones_like(size, dtype=torch.long)
        for _ in range(self.k - 1):
            term = torch.lerp(term, jacobian.transposed(term), self.damping)
            length = torch.linalg.vector_norm(term, dim=1)
            grows = (length > size) & (length > first)
            diverged = running & grows & grew
            before = torch.where((grows & ~grew)[:, None], total, before)  # the growth
            total = torch.where(diverged[:, None], before, torch.where(running[:, None], total + term, total))
            running = running & ~diverged
            terms = terms + running
            running = running & (length > self.rtol * torch.linalg.vector_norm(total, dim=1))
            size, grew = length, grows
            if not (transformed() or torch.compiler.is_compiling()) and not running.any():
                break
        if not transformed():
            self.terms = terms.detach()
        return self.damping * total
