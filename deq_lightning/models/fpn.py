"""Fixed point networks, the convolutional image classifiers of the JFB paper."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.models.base import ImplicitModel
from deq_lightning.solvers import FixedPointIteration, Solver

NetworkName = Literal["mnist", "svhn", "cifar10"]
LatentNorm = Literal["batch", "group", "none"]

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
        y: Tensor = self.after(self.shortcut(x) + self.branch(x))
        return y


class Subsample(nn.Module):
    """A shortcut without parameters: keeps every `stride`-th pixel and adds channels of zeros on both sides.

    Args:
        new_channels: how many channels to add.
        stride: distance of the pixels kept.

    References:
        He et al., "Deep residual learning for image recognition", 2016, option A.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.padding = (0, 0, 0, 0, new_channels // 2, new_channels - new_channels // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map with more channels."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def plain_block(channels: int, norm: nn.Module) -> Residual:
    """Return the latent block of the MNIST and SVHN networks."""
    # The reference applies lrelu twice at the end of the branch: a slope of 0.1² on what is negative.
    twice = nn.LeakyReLU(0.01)
    return Residual(nn.Sequential(conv3x3(channels, channels), lrelu(), conv3x3(channels, channels), twice), norm)


def activated_block(channels: int, norm: nn.Module, dropout: float = 0.0) -> Residual:
    """Return the block of the CIFAR-10 network, used for data and latent alike; without dropout in the latter."""
    drop = [nn.Dropout2d(dropout)] if dropout else []
    branch = nn.Sequential(conv3x3(channels, channels), lrelu(), *drop, conv3x3(channels, channels))
    return Residual(branch, nn.Sequential(lrelu(), norm))


def resnet_block(in_channels: int, channels: int, stride: int) -> Residual:
    """Return the data block of the SVHN network."""
    branch = nn.Sequential(
        conv3x3(in_channels, channels, stride=stride, bias=False),
        nn.BatchNorm2d(channels),
        lrelu(),
        nn.Dropout2d(0.1),
        conv3x3(channels, channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.Dropout2d(0.1),
    )
    return Residual(branch, lrelu(), Subsample(channels - in_channels, stride))


def mnist_encoder(in_channels: int, channels: int) -> nn.Sequential:
    """Return two convolutions around a threefold pooling."""
    half = channels // 2
    first = [conv3x3(in_channels, half), nn.BatchNorm2d(half), lrelu(), nn.MaxPool2d(3)]
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
    """One published network: its parts and its sizes.

    Args:
        encoder: makes Q from (in_channels, channels).
        latent_size: height of the latent map, from that of the image.
        block: makes one latent block of R from (channels, norm).
        head: makes S from (channels, latent size, num_classes).
        in_channels: of the images.
        image_size: their height and width.
        channels: of the latent map.
        latent_blocks: how many.
        gamma: the contraction factor.
        scales_input: whether gamma multiplies the state that enters R, rather than what R returns.
    """

    encoder: Callable[[int, int], nn.Module]
    latent_size: Callable[[int], int]
    block: Callable[[int, nn.Module], nn.Module]
    head: Callable[[int, int, int], nn.Module]
    in_channels: int
    image_size: int
    channels: int
    latent_blocks: int
    gamma: float
    scales_input: bool = False


NETWORKS: dict[str, Network] = {
    "mnist": Network(
        mnist_encoder, lambda size: size // 3, plain_block, partial(narrow_head, divisor=2), 1, 28, 32, 2, gamma=0.5
    ),
    "svhn": Network(
        svhn_encoder, lambda size: -(-size // 4), plain_block, partial(narrow_head, divisor=4), 3, 32, 64, 1, gamma=0.9
    ),
    "cifar10": Network(
        cifar10_encoder, lambda size: (size + 8) // 4, activated_block, strided_head, 3, 32, 35, 5, 0.5, True
    ),
}

LATENT_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": partial(nn.BatchNorm2d, affine=False),
    "group": partial(nn.GroupNorm, 1, affine=False),
    "none": lambda channels: nn.Identity(),
}


class FPN(ImplicitModel):
    pass


class FPN(ImplicitModel):
    def __init__(
        self,
        network: NetworkName = "mnist",
        in_channels: int | None = None,
        image_size: int | None = None,
        num_classes: int = 10,
        channels: int | None = None,
        latent_blocks: int | None = None,
        gamma: float | None = None,
        latent_norm: LatentNorm = "group",
        solver: Solver | None = None,
    ) -> None:
        super().__init__(solver or FixedPointIteration(max_steps=50))
        p = NETWORKS[network]
        channels = channels or p.channels
        image_size = image_size or p.image_size
        norm = LATENT_NORMS[latent_norm]
        self.gamma = gamma or p.gamma
        self.scales_input = p.scales_input
        self.encoder = p.encoder(in_channels or p.in_channels, channels)
        self.latent = nn.Sequential(*(p.block(channels, norm(channels)) for _ in range(latent_blocks or p.latent_blocks)))
        self.head = p.head(channels, p.latent_size(image_size), num_classes)

    def inject(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        if self.scales_input:
            return self.latent(u + self.gamma * z)
        return self.gamma * self.latent(u + z)

    def readout(self, z: Tensor) -> Tensor:
        return self.head(z)
