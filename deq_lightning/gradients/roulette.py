"""The Neumann series without its bias."""

import math

import torch
from torch import Tensor

from deq_lightning.configured import NO_DAMPING, whole, within
from deq_lightning.gradients.adjoint import attach_adjoint
from deq_lightning.gradients.base import GradientStrategy
from deq_lightning.gradients.jacobian import Product
from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State


class RouletteNPG(GradientStrategy):
    r"""The Neumann series cut at random, so that its mean over draws is the exact gradient.

    As `NPG`, but after `k` terms a draw decides before each further one whether it is still taken, with probability
    `p`; a term that is reached with probability q counts 1/q times (Russian roulette). The bias of the truncation
    becomes noise, which the optimizer averages. Its variance is finite where :math:`\rho(B)^2 < p`. At an exact fixed
    point.

    Args:
        pretrain_steps: optimizer steps of plain unrolling before the equilibrium is solved.
        unroll_steps: applications of the cell in that stage.
        k: terms that are always taken, 1 or more.
        p: probability that a further term is taken, in (0, 1); k + p/(1 − p) terms on average.
        damping: λ in (0, 1], as for `NPG`.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Geng et al., "On training implicit models", 2021, arXiv:2111.05177, Eq. 17 (the series), section 5 (its bias).
        Chen et al., "Residual flows for invertible generative modeling", NeurIPS 2019, arXiv:1906.02735, Eq. 6.
    """

    def __init__(
        self, pretrain_steps: int = 0, unroll_steps: int = 10, k: int = 5, p: float = 0.7, damping: float = 0.5
    ) -> None:
        super().__init__(pretrain_steps, unroll_steps)
        whole(1, k=k)
        within("(0, 1)", "For a fixed number of terms use `NPG`.", p=p)
        within("(0, 1]", NO_DAMPING, damping=damping)
        self.k = k
        self.p = p
        self.damping = damping

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return f(z) with the series as its adjoint; the number of terms is drawn here, one for the batch."""
        further = 0
        if torch.is_grad_enabled():
            drawn = torch.rand((), dtype=torch.float64).item()  # the host's own stream, on every device
            further = math.floor(math.log1p(-drawn) / math.log(self.p))

        def series(jacobian: Product, g: Tensor) -> Tensor:
            """Sum it by Horner's scheme, the last term first."""
            w = g * self.p**-further
            for index in range(self.k + further - 2, -1, -1):
                weight = self.p ** -max(0, index + 1 - self.k)
                w = weight * g + torch.lerp(w, jacobian.transposed(w), self.damping)
            return self.damping * w

        return attach_adjoint(f, z, series)
