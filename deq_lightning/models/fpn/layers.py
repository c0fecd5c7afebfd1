"""The layers of the fixed point networks, and how the convolutional ones of them are put together."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from deq_lightning.models.layers.norms import GroupNorm

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
class ConvolutionalNetwork:
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
    "mnist": ConvolutionalNetwork(
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
    "svhn": ConvolutionalNetwork(
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
    "cifar10": ConvolutionalNetwork(
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
    "group": partial(GroupNorm, 1, affine=False),
    "none": lambda channels: nn.Identity(),
}
