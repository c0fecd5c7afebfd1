"""Fixed point networks, the convolutional image classifiers of the JFB paper."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from deq_lightning.configured import check_at_least
from deq_lightning.models.base import CellMap, Equilibrium, ImplicitModel
from deq_lightning.models.projections import average_over_processes
from deq_lightning.solvers import FixedPointIteration, Solver

conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1)
lrelu = partial(nn.LeakyReLU, 0.1)


class Residual(nn.Module):
    """Adds a branch to a shortcut: after(shortcut(x) + branch(x)).

    Args:
        branch: the layers that are added.
        after: what follows the sum.
        shortcut: the other path. None: x itself.
    """

    def __init__(self, branch: nn.Module, after: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.after = after
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return after(shortcut(x) + branch(x))."""
        return self.after(self.shortcut(x) + self.branch(x))


def plain_block(channels: int, norm: nn.Module) -> Residual:
    """Return the latent block of the MNIST and SVHN networks."""
    # The reference applies lrelu twice at the end of the branch: a slope of 0.1² on what is negative.
    twice = nn.LeakyReLU(0.01)
    return Residual(nn.Sequential(conv3x3(channels, channels), lrelu(), conv3x3(channels, channels), twice), norm)


def activated_block(channels: int, norm: nn.Module, dropout: float = 0.0) -> Residual:
    """Return the block of the CIFAR-10 network, in the encoder with dropout and in the latent map without."""
    drop = [nn.Dropout2d(dropout)] if dropout else []
    branch = nn.Sequential(conv3x3(channels, channels), lrelu(), *drop, conv3x3(channels, channels))
    return Residual(branch, nn.Sequential(lrelu(), norm))


def resnet_block(
    in_channels: int, channels: int, stride: int, act: Callable[[], nn.Module] = lrelu, dropout: float = 0.1
) -> Residual:
    """Return a block of two convolutions with BatchNorm, those of the SVHN network by default."""

    def conv_norm(inner: int, stride: int) -> list[nn.Module]:
        return [conv3x3(inner, channels, stride=stride, bias=False), nn.BatchNorm2d(channels)]

    def drop() -> list[nn.Module]:
        return [nn.Dropout2d(dropout)] if dropout else []

    branch = nn.Sequential(*conv_norm(in_channels, stride), act(), *drop(), *conv_norm(channels, 1), *drop())
    # Without parameters (option A of He et al. 2016): every `stride`-th pixel, and zeros for channels on both sides.
    new = channels - in_channels
    shortcut = nn.Sequential(nn.AvgPool2d(1, stride), nn.ZeroPad3d((0, 0, 0, 0, new // 2, new - new // 2)))
    return Residual(branch, act(), shortcut)


def mnist_encoder(in_channels: int, channels: int) -> nn.Sequential:
    """Return two convolutions around a threefold pooling."""
    half = channels // 2
    first = (conv3x3(in_channels, half), nn.BatchNorm2d(half), lrelu(), nn.MaxPool2d(3))
    return nn.Sequential(*first, conv3x3(half, channels), nn.BatchNorm2d(channels), lrelu())


def svhn_encoder(in_channels: int, channels: int) -> nn.Sequential:
    """Return a small ResNet that halves the map twice."""
    quarter, half = channels // 4, channels // 2
    return nn.Sequential(
        conv3x3(in_channels, quarter, bias=False),
        nn.BatchNorm2d(quarter),
        lrelu(),
        resnet_block(quarter, quarter, stride=1),
        resnet_block(quarter, half, stride=2),
        resnet_block(half, channels, stride=2),
    )


def cifar10_encoder(in_channels: int, channels: int) -> nn.Sequential:
    """Return a frame of grey, a wide convolution, and 32 blocks that halve the map twice."""

    def blocks() -> list[nn.Module]:
        return [activated_block(channels, nn.BatchNorm2d(channels, affine=False), dropout=0.15) for _ in range(16)]

    frame = nn.ConstantPad2d(4, 0.449)
    wide = nn.Conv2d(in_channels, channels, 7, padding=3, padding_mode="replicate")
    return nn.Sequential(frame, wide, lrelu(), *blocks(), nn.AvgPool2d(2), *blocks(), nn.AvgPool2d(2))


def classifier(conv: nn.Conv2d, dropout: nn.Module, size: int, num_classes: int) -> nn.Sequential:
    """Return one convolution of a map of height and width `size`, and a linear layer without bias."""
    out_size = (size + 2 * int(conv.padding[0]) - 3) // conv.stride[0] + 1
    linear = nn.Linear(conv.out_channels * out_size**2, num_classes, bias=False)
    return nn.Sequential(conv, lrelu(), dropout, nn.Flatten(), linear)


def narrow_head(channels: int, size: int, num_classes: int, divisor: int) -> nn.Sequential:
    """Return the head of the MNIST and SVHN networks, which has `divisor` times fewer channels."""
    # Published without padding; a map smaller than the kernel needs it.
    conv = nn.Conv2d(channels, channels // divisor, 3, padding=0 if size >= 3 else 1)
    return classifier(conv, nn.Dropout2d(0.2), size, num_classes)


def strided_head(channels: int, size: int, num_classes: int) -> nn.Sequential:
    """Return the head of the CIFAR-10 network."""
    return classifier(conv3x3(channels, channels, stride=2), nn.Dropout(0.1), size, num_classes)


@dataclass(frozen=True)
class Network:
    """One published network: how its parts are made, and its sizes."""

    encoder: Callable[[int, int], nn.Module]  # Q from (in_channels, channels)
    latent_size: Callable[[int], int]  # height of the latent map from that of the image
    block: Callable[[int, nn.Module], nn.Module]  # one latent block of R from (channels, norm)
    head: Callable[[int, int, int], nn.Module]  # S from (channels, latent size, num_classes)
    in_channels: int
    image_size: int
    channels: int
    latent_blocks: int
    gamma: float
    gamma_on_state: bool = False  # gamma scales the state that enters R, not what R returns


NETWORKS = {
    "mnist": Network(
        encoder=mnist_encoder,
        latent_size=lambda size: size // 3,
        block=plain_block,
        head=partial(narrow_head, divisor=2),
        in_channels=1,
        image_size=28,
        channels=32,
        latent_blocks=2,
        gamma=0.5,
    ),
    "svhn": Network(
        encoder=svhn_encoder,
        latent_size=lambda size: (size + 3) // 4,
        block=plain_block,
        head=partial(narrow_head, divisor=4),
        in_channels=3,
        image_size=32,
        channels=64,
        latent_blocks=1,
        gamma=0.9,
    ),
    "cifar10": Network(
        encoder=cifar10_encoder,
        latent_size=lambda size: (size + 8) // 4,
        block=activated_block,
        head=strided_head,
        in_channels=3,
        image_size=32,
        channels=35,
        latent_blocks=5,
        gamma=0.5,
        gamma_on_state=True,
    ),
}

LATENT_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": partial(nn.BatchNorm2d, affine=False),
    "group": partial(nn.GroupNorm, 1, affine=False),
    "none": lambda channels: nn.Identity(),
}


class FPN(ImplicitModel):
    """Fixed point network: one of the three convolutional classifiers of the JFB paper.

    In the paper's letters S(z*) with z* = R(z*, Q(x)): an encoder Q, a few latent blocks R, a small head S.

        network   parameters                                      R(z, u)
        mnist      54,352 = Q   4,896 + R  36,992 + S 12,464      gamma · blocks(u + z)
        svhn      163,488 = Q  74,640 + R  73,856 + S 14,992      gamma · blocks(u + z)
        cifar10   843,430 = Q 713,020 + R 110,600 + S 19,810      blocks(u + gamma · z)

    The published numbers, except that the reference registers 163,744 for SVHN: 256 of them in layers it never uses.
    Nothing forces R to be contractive; in practice gamma and the norms see to it. Without norms the published gamma of
    `svhn` does not: a fresh network has a spectral radius of 1.04. With `gamma` at 0.8 or less it converges.

    Args:
        network: which of the three. Its published values stand where the arguments below are None.
        in_channels: channels of an image (published: 1, 3, 3).
        image_size: height and width of an image in pixels, 3 or more (28, 32, 32).
        num_classes: classes to predict.
        channels: channels of the latent map, 4 or more (32, 64, 35); the narrower layers follow in proportion.
        latent_blocks: residual blocks in R, 1 or more (2, 1, 5).
        gamma: factor in (0, 1) on what R returns, or for `cifar10` on the state that enters it (0.5, 0.9, 0.5).
        latent_norm: what normalises every latent block, always without parameters. `batch`, as published: BatchNorm,
            which in training makes the samples of a batch depend on each other, so that no solver can settle them one
            by one, and moves its running statistics at every evaluation. `group`: GroupNorm with one group, which keeps
            samples apart; the injection is then normalised too, once, because an image of little contrast would
            otherwise hardly count beside a state of fixed scale. `none`: as published for Jacobian-based training.
        lipschitz_rescale: whether the convolutions of R shrink after every optimizer step in which R, at the
            equilibrium and beside it, contracts by less than `gamma` on average, as in the paper's code. That does not
            make R a contraction, and the paper reports that it was not needed.
        solver: finds z*. None: `FixedPointIteration(max_steps=50)`, the paper's iteration.

    Shapes:
        Images (batch, in_channels, image_size, image_size) to logits (batch, num_classes). State and injection are
        (batch, channels, size, size) with size = image_size / 3 rounded down for `mnist`, image_size / 4 rounded up for
        `svhn`, and image_size / 4 + 2 rounded down for `cifar10`.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Fung et al., "JFB: Jacobian-free backpropagation for implicit networks", AAAI 2022, arXiv:2103.12803.
    """

    def __init__(
        self,
        network: Literal["mnist", "svhn", "cifar10"] = "mnist",
        in_channels: int | None = None,
        image_size: int | None = None,
        num_classes: int = 10,
        channels: int | None = None,
        latent_blocks: int | None = None,
        gamma: float | None = None,
        latent_norm: Literal["batch", "group", "none"] = "group",
        lipschitz_rescale: bool = False,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(solver or FixedPointIteration(max_steps=50))
        check_known("network", network, NETWORKS)
        check_known("latent_norm", latent_norm, LATENT_NORMS)
        published, norm = NETWORKS[network], LATENT_NORMS[latent_norm]
        in_channels = at_least(1, "in_channels", in_channels, published.in_channels)
        image_size = at_least(3, "image_size", image_size, published.image_size)
        channels = at_least(4, "channels", channels, published.channels)
        latent_blocks = at_least(1, "latent_blocks", latent_blocks, published.latent_blocks)
        num_classes = at_least(1, "num_classes", num_classes, 10)
        self.gamma = published.gamma if gamma is None else gamma
        if not 0 < self.gamma < 1:
            raise ValueError(f"`gamma` must be in (0, 1), got {gamma}. Leave it out for the usual {published.gamma}.")
        self.gamma_on_state = published.gamma_on_state
        self.lipschitz_rescale = lipschitz_rescale
        self.encoder = published.encoder(in_channels, channels)
        self.injection_norm = norm(channels) if latent_norm == "group" else nn.Identity()
        self.latent = nn.Sequential(*(published.block(channels, norm(channels)) for _ in range(latent_blocks)))
        self.head = published.head(channels, published.latent_size(image_size), num_classes)

    def inject(self, x: Tensor) -> Tensor:
        """Return Q(x), the latent map of the images."""
        return self.injection_norm(self.encoder(x))

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        """Return R(z, u)."""
        if self.gamma_on_state:
            return self.latent(u + self.gamma * z)
        return self.gamma * self.latent(u + z)

    def readout(self, z: Tensor) -> Tensor:
        """Return the logits S(z)."""
        return self.head(z)

    def project(self, equilibria: Sequence[Equilibrium]) -> None:
        """Shrink the convolutions of R where it contracts too little."""
        for f, z, _ in equilibria if self.lipschitz_rescale else ():
            assert isinstance(f, CellMap) and isinstance(z, Tensor)
            expansion = average_over_processes(self.expansion(z, f.u))
            factor = (self.gamma / expansion).clamp_max(1) ** (1 / len(self.latent))
            for parameter in self.latent.parameters():
                parameter.mul_(factor)

    def expansion(self, z: Tensor, u: Tensor) -> Tensor:
        """Return by how much R lengthens a random displacement of the state, on average over samples and pixels.

        Displacement and injection are disturbed by standard normal noise; lengths are over the channels of a pixel.
        """
        noise, disturbed = torch.randn_like(z), u + torch.randn_like(u)
        change = self.cell(z + noise, disturbed) - self.cell(z, disturbed)
        return change.norm(dim=1).mean() / noise.norm(dim=1).mean()


def check_known(name: str, key: str, known: Iterable[str]) -> None:
    """Raise a ValueError if the key is not one of those known."""
    if key not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}; got {key!r}. Leave it out for the default.")


def at_least(minimum: int, name: str, value: int | None, default: int) -> int:
    """Return the value, or the default for None; raise a ValueError if it is below the minimum."""
    if value is None:
        return default
    check_at_least(minimum, f"Leave it out for the usual {default}.", **{name: value})
    return value
