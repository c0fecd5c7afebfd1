"""Equilibria of proximal and gradient steps with a learned regulariser."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from deq_lightning.configured import above, sizes, within
from deq_lightning.models.base import Equilibrium, ImplicitModel
from deq_lightning.models.layers.projections import clamp_convolution_
from deq_lightning.operators import Blur, Operator
from deq_lightning.solvers import Solver


class Prior(nn.Sequential):
    """A convolutional network N of images, whose Lipschitz constant is at most κ at the start.

    Args:
        channels: of the images.
        width: channels in between.
        depth: convolutions, 2 or more; an ELU, whose slope is at most 1, between each two.
        kappa: κ, shared by the convolutions alike.
    """

    def __init__(self, channels: int, width: int, depth: int, kappa: float) -> None:
        ends = [channels, *[width] * (depth - 1), channels]
        convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(ends)]
        super().__init__(*[layer for conv in convs for layer in (conv, nn.ELU())][:-1])
        self.bound = kappa ** (1 / depth)
        self.clamp_()

    def clamp_(self) -> None:
        """Bring the weights back to where that holds."""
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                clamp_convolution_(layer.weight, self.bound)


class LearnedRegulariser(ImplicitModel):
    """What both models have: the operator A of the data, a learned regulariser R, and the length η of a step.

    η and the weight λ of R are learned, and stay positive and so small that the cell is a contraction where the network
    of R has a Lipschitz constant of κ below 1. So it is at the start, whence every solver that iterates the cell finds
    its one equilibrium from the first step on; and `contraction` keeps it so.

    Args:
        in_channels: channels of the image, 1 or more.
        operator: A, that of the data. None: `Blur()`.
        width: channels of the hidden layers of R, 1 or more.
        depth: convolutions of R, 2 or more.
        kappa: κ, in (0, 1).
        weight: λ at the start, above 0.
        contraction: whether the weights of R are brought back to κ after every optimizer step. That there is an
            equilibrium is then proven, and costs accuracy: on blurred digits it was 2 to 3 dB.
        solver: finds the equilibrium. None: `Anderson()`.

    Shapes:
        Observations to images (batch, in_channels, height, width), which are the state as well.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        operator: Operator | None = None,
        width: int = 32,
        depth: int = 4,
        kappa: float = 0.95,
        weight: float = 0.1,
        contraction: bool = False,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(solver)
        sizes(in_channels=in_channels, width=width)
        sizes(2, depth=depth)
        within("(0, 1)", "From 1 on the cell need not be a contraction.", kappa=kappa)
        above(0, weight=weight)
        self.in_channels = in_channels
        self.contraction = contraction
        self.operator = Blur() if operator is None else operator
        self.prior = Prior(in_channels, width, depth, kappa)
        self.log_weight = nn.Parameter(torch.tensor(math.log(weight)))
        self.step = nn.Parameter(torch.zeros(()))

    @property
    def weight(self) -> Tensor:
        """λ."""
        return self.log_weight.exp()

    @property
    @abstractmethod
    def eta(self) -> Tensor:
        """η."""

    def inject(self, x: Tensor) -> Tensor:
        """Return Aᵀ y."""
        return self.operator.adjoint(x)

    def initial_state(self, u: Tensor) -> Tensor:
        """Return Aᵀ y, where the papers start."""
        return u.to(self.log_weight)

    def slope(self, z: Tensor, u: Tensor) -> Tensor:
        """Return the gradient of ‖A z − y‖² / 2, which is Aᵀ A z − u."""
        return self.operator.adjoint(self.operator(z)) - u

    def readout(self, z: Tensor) -> Tensor:
        """Return the image, which is the state."""
        return z

    def project(self, equilibria: Sequence[Equilibrium]) -> None:
        """Bring the weights of R back to κ, where that is wanted."""
        del equilibria
        if self.contraction:
            self.prior.clamp_()


class DEGradient(LearnedRegulariser):
    """Gradient descent with a learned regulariser, DE-Grad: z = z − η (Aᵀ (A z − y) + R(z)), R(z) = λ (z + N(z)).

    With η below 2 / (1 + 2 λ), a contraction comes 1 − η λ (1 − κ) times as near in every step.
    Arguments are those of `LearnedRegulariser`.

    References:
        Gilton, Ongie and Willett, "Deep equilibrium architectures for inverse problems in imaging", IEEE Trans.
        Computational Imaging 7, 2021, arXiv:2102.07944.
    """

    @property
    def eta(self) -> Tensor:
        """η."""
        return 2 * self.step.sigmoid() / (1 + 2 * self.weight)

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        """Return the state after a step."""
        return z - self.eta * (self.slope(z, u) + self.weight * (z + self.prior(z)))


class DEProx(LearnedRegulariser):
    """Proximal gradient descent with a learned step, DE-Prox: z = R(z − η Aᵀ (A z − y)), R(v) = (v + λ N(v)) / (1 + λ).

    With η below 2, a contraction comes (1 + λ κ) / (1 + λ) times as near in every step.
    Arguments are those of `LearnedRegulariser`.

    References:
        Gilton, Ongie and Willett, "Deep equilibrium architectures for inverse problems in imaging", IEEE Trans.
        Computational Imaging 7, 2021, arXiv:2102.07944.
    """

    @property
    def eta(self) -> Tensor:
        """η."""
        return 2 * self.step.sigmoid()

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        """Return the state after a step."""
        v = z - self.eta * self.slope(z, u)
        return (v + self.weight * self.prior(v)) / (1 + self.weight)
