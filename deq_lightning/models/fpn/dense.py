"""Fixed point networks with a vector as latent, those of the first version of the JFB paper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import LEAVE_OUT, one_of, sizes
from deq_lightning.models.base import Equilibrium, ImplicitModel
from deq_lightning.models.fpn.layers import conv3x3, lrelu, resnet_block
from deq_lightning.models.layers.projections import clamp_singular_values_
from deq_lightning.solvers import FixedPointIteration, Solver


def dense_encoder(*sizes: int) -> nn.Sequential:
    """Return linear layers with ReLU on a flattened image."""
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers)


def conv_encoder(
    channels: Sequence[int],
    kernel: int,
    features: int,
    latent: int,
    act: Callable[[], nn.Module],
    dropout: Sequence[float],
) -> nn.Sequential:
    """Return unpadded convolutions, each with its dropout and a pooling by 2, and a linear layer from `features`."""
    stages: list[nn.Module] = []
    for (before, after), p in zip(pairwise(channels), dropout, strict=True):
        drop = [nn.Dropout(p)] if p else []
        stages += [nn.Conv2d(before, after, kernel), *drop, act(), nn.MaxPool2d(2)]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(features, latent), act())


def resnet56(latent: int) -> nn.Sequential:
    """Return the ResNet of 56 layers for CIFAR-10 (He et al. 2016, with option A) with `latent` outputs."""
    widths = [16] * 10 + [32] * 9 + [64] * 9
    blocks = [resnet_block(a, b, stride=b // a, act=nn.ReLU, dropout=0.0) for a, b in pairwise(widths)]
    stem = (conv3x3(3, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, latent))


def one_matrix(latent: int) -> nn.Module:
    """Return the linear layer of the smaller latent maps."""
    return nn.Linear(latent, latent, bias=False)


def two_matrices(latent: int) -> nn.Module:
    """Return the two layers of the larger latent maps."""
    return nn.Sequential(nn.Linear(latent, latent), lrelu(), nn.Linear(latent, latent, bias=False))


class Leading(nn.Module):
    """Takes the leading coordinates as logits, without parameters.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, z: Tensor) -> Tensor:
        """Return the leading coordinates."""
        return z[:, : self.size]


@dataclass(frozen=True)
class DenseNetwork:
    """One published network: how its parts are made, and what its latent map does around its linear layers."""

    encoder: Callable[[int], nn.Module]  # Q from the size of the latent
    latent: int
    before: Callable[[Tensor], Tensor]  # of the state
    layers: Callable[[int], nn.Module]  # of R, from the size of the latent
    after: Callable[[Tensor], Tensor]  # of what they return
    injected_before: bool  # the injection enters the layers; otherwise it is added to R's output
    head: Callable[[int, int], nn.Module]  # S from (latent, num_classes)
    bound: float  # of the singular values of the linear layers outside R; those in R have 1


def _slope(z: Tensor) -> Tensor:
    return F.leaky_relu(z, 0.1)


NETWORKS = {
    "mnist_fc": DenseNetwork(
        encoder=lambda latent: dense_encoder(784, 95, latent),
        latent=59,
        before=F.relu,
        layers=one_matrix,
        after=lambda z: 0.9 * F.relu(z),
        injected_before=True,
        head=partial(nn.Linear, bias=False),
        bound=1.0,
    ),
    "mnist_conv": DenseNetwork(
        encoder=lambda latent: conv_encoder((1, 96, 40), 3, 1000, latent, nn.ReLU, dropout=(0.5, 0.5)),
        latent=46,
        before=lambda z: 0.99 * z,
        layers=one_matrix,
        after=F.relu,
        injected_before=True,
        head=partial(nn.Linear, bias=False),
        bound=1.0,
    ),
    "svhn": DenseNetwork(
        encoder=lambda latent: conv_encoder((3, 30, 40), 5, 1000, latent, lrelu, dropout=(0, 0)),
        latent=100,
        before=_slope,
        layers=two_matrices,
        after=lambda z: 0.99 * z,
        injected_before=False,
        head=nn.Linear,
        bound=0.9,
    ),
    "cifar10": DenseNetwork(
        encoder=lambda latent: conv_encoder((3, 80, 90, 100), 3, 400, latent, nn.ReLU, dropout=(0, 0.5, 0)),
        latent=52,
        before=lambda z: 0.99 * F.relu(z),
        layers=one_matrix,
        after=lambda z: z,
        injected_before=True,
        head=lambda latent, num_classes: Leading(num_classes),
        bound=0.5,
    ),
    "cifar10_augmented": DenseNetwork(
        encoder=resnet56,
        latent=45,
        before=lambda z: z,
        layers=two_matrices,
        after=lambda z: 0.9 * _slope(z),
        injected_before=False,
        head=nn.Linear,
        bound=1.0,
    ),
}


class DenseFPN(ImplicitModel):
    """Fixed point network on vectors: one of the five classifiers of the first version of the JFB paper.

    After every optimizer step the singular values of all linear layers are bounded, so that the latent map contracts by
    a factor of 0.9 or 0.99 and every solver reaches its one equilibrium. (The paper bounds them before every forward
    pass, in evaluation too; where the bound has been reached that is the same.) The explicit counterpart is
    `gradient=Unrolled(unroll_steps=1)`.

    Args:
        network: which published one: `mnist_fc` (84,310 parameters, "84K"), `mnist_conv` (84,182, "84K"), `svhn`
            (153,530, "154K"), `cifar10` (171,786, "172K") or, for augmented images, `cifar10_augmented` (a ResNet-56
            before it; 859,848, "860K"). The first two take images of (1, 28, 28), the others of (3, 32, 32).
        num_classes: classes to predict; for `cifar10`, whose first coordinates are the logits, at most 52.
        bounded: whether the singular values are bounded.
        softmax_head: whether the prediction goes through a softmax before the loss applies its own, as the published
            `svhn` network did.
        solver: finds z*. None: `FixedPointIteration(max_steps=500)`, the paper's iteration.

    Shapes:
        Images to logits (batch, num_classes). State and injection are (batch, 59), 46, 100, 52 or 45.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Fung et al., "Fixed point networks: implicit depth models with Jacobian-free backprop", arXiv:2103.12803v1.
    """

    def __init__(
        self,
        network: Literal["mnist_fc", "mnist_conv", "svhn", "cifar10", "cifar10_augmented"] = "mnist_fc",
        num_classes: int = 10,
        bounded: bool = True,
        softmax_head: bool = False,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(solver or FixedPointIteration(max_steps=500))
        one_of(NETWORKS, LEAVE_OUT, network=network)
        sizes(num_classes=num_classes)
        self.network = network
        latent = self.published.latent
        if network == "cifar10" and num_classes > latent:
            raise ValueError(f"`num_classes` must be at most {latent} for `cifar10`, got {num_classes}.")
        self.bounded = bounded
        self.softmax_head = softmax_head
        self.encoder = self.published.encoder(latent)
        self.latent = self.published.layers(latent)
        self.head = self.published.head(latent, num_classes)
        self.project([])

    @property
    def published(self) -> DenseNetwork:
        """The network's description."""
        return NETWORKS[self.network]

    def inject(self, x: Tensor) -> Tensor:
        """Return Q(x), a vector."""
        return self.encoder(x)

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        """Return R(z, u)."""
        x = self.published.before(z)
        if self.published.injected_before:
            return self.published.after(self.latent(x + u))
        return self.published.after(self.latent(x)) + u

    def readout(self, z: Tensor) -> Tensor:
        """Return the logits S(z)."""
        return self.head(z).softmax(dim=1) if self.softmax_head else self.head(z)

    def project(self, equilibria: Sequence[Equilibrium]) -> None:
        """Bound the singular values of every linear layer."""
        del equilibria
        in_latent = set(self.latent.modules())
        for layer in self.modules() if self.bounded else ():
            if isinstance(layer, nn.Linear):
                clamp_singular_values_(layer.weight, 1.0 if layer in in_latent else self.published.bound)
