"""Multiscale deep equilibrium models for classification."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.models.base import ImplicitModel
from deq_lightning.models.frozen import VariationalDropout2d, WeightNormConv2d
from deq_lightning.solvers import Broyden, Solver

States = tuple[Tensor, ...]


class MDEQ(ImplicitModel):
    r"""Multiscale deep equilibrium model: one equilibrium over feature maps of several resolutions at once.

    The defaults are MDEQ-Tiny for CIFAR-10 ("170K" in the papers, 158,986 parameters in fact). CIFAR-10 large ("10M",
    11,098,398): `channels` 32, 64, 128, 256, `head_channels` 14, 28, 56, 112, `final_channels` 1680. ImageNet small
    ("18M", 16,808,936): the same `channels`, `head_channels` 24, 48, 96, 192, `final_channels` 2048, `downsample` 2,
    `num_classes` 1000, `init_std` null.

    Args:
        in_channels: channels of the images.
        num_classes: classes to predict.
        channels: channels of each branch, finest resolution first; each branch halves the resolution of the one before.
        expansion: how many times wider a residual block is inside.
        groups: groups of the GroupNorms; divides every entry of `channels`. The last norm of the cell has half as many.
        downsample: stride-2 convolutions in the stem, 0 to 2.
        head_channels: width of the head's bottleneck on each branch, as many as `channels`.
        final_channels: channels before the global average pooling.
        dropout: probability to drop a channel in the residual blocks, with one mask for the whole solve; in [0, 1).
        init_std: standard deviation of the normal initialisation of the convolutions without weight normalisation.
            None: PyTorch's default initialisation, as the ImageNet models were trained.
        solver: finds the equilibrium. None: `Broyden()`.

    Shapes:
        Images (batch, in_channels, height, width) to logits (batch, num_classes). The state is a tuple of (batch,
        channels[i], height / 2^(downsample + i), width / 2^(downsample + i)).

    Raises:
        ValueError: if the sizes do not fit each other.

    References:
        Bai, Koltun and Kolter, "Multiscale deep equilibrium models", NeurIPS 2020, arXiv:2006.08656.
        Geng et al., "On training implicit models", NeurIPS 2021, arXiv:2111.05177.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        channels: Sequence[int] = (24, 24),
        expansion: int = 5,
        groups: int = 8,
        downsample: int = 0,
        head_channels: Sequence[int] = (8, 16),
        final_channels: int = 200,
        dropout: float = 0.0,
        init_std: float | None = 0.01,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(solver or Broyden())
        _check_sizes(channels, head_channels, groups, downsample)
        self.stem = _stem(in_channels, channels, downsample)
        self.equilibrium_module = MultiscaleCell(channels, expansion, groups, dropout)
        self.head = Head(channels, head_channels, final_channels, num_classes)
        if init_std is not None:
            self._initialise(init_std)

    def _initialise(self, std: float) -> None:
        """Draw every convolution from N(0, std²), but for the weight-normed ones: those keep PyTorch's default.

        The published code draws these too, but overwrites the draw before it is ever used.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not isinstance(module, WeightNormConv2d):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=std)

    def inject(self, x: Tensor) -> Tensor:
        """Return the injection, which enters the finest branch only: (batch, channels[0], height, width)."""
        return self.stem(x)

    def initial_state(self, u: Tensor) -> States:
        """Return zeros for every branch."""
        batch, _, height, width = u.shape
        state = []
        for channels in self.equilibrium_module.channels:
            state.append(self.zeros((batch, channels, height, width)))
            height, width = (height + 1) // 2, (width + 1) // 2  # what a stride-2 convolution makes of them
        return tuple(state)

    def cell(self, z: States, u: Tensor) -> States:
        """Return the equilibrium module at `z`."""
        return self.equilibrium_module(z, u)

    def readout(self, z: States) -> Tensor:
        """Return the logits."""
        return self.head(z)


class MultiscaleCell(nn.Module):
    """One evaluation of the equilibrium module: a residual block per branch, then every branch sums all others.

    With a single branch it is the residual block alone.

    Args:
        channels: channels of each branch.
        expansion: width of the blocks relative to `channels`.
        groups: groups of the GroupNorms.
        dropout: probability of the variational dropout in the blocks.
    """

    def __init__(self, channels: Sequence[int], expansion: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.blocks = nn.ModuleList(ResidualBlock(c, expansion, groups, dropout) for c in channels)
        self.fusions = nn.ModuleList()
        self.post = nn.ModuleList()
        if len(channels) > 1:
            self.fusions.extend(Fusion(i, channels, groups) for i in range(len(channels)))
            self.post.extend(
                nn.Sequential(nn.ReLU(), WeightNormConv2d(c, c, 1, bias=False), nn.GroupNorm(groups // 2, c))
                for c in channels
            )

    def forward(self, z: States, u: Tensor) -> States:
        """Return f(z; u)."""
        injections = (u, *[None] * (len(z) - 1))
        branches = [block(part, v) for block, part, v in zip(self.blocks, z, injections, strict=True)]
        if len(branches) == 1:
            return tuple(branches)
        return tuple(post(fusion(branches)) for post, fusion in zip(self.post, self.fusions, strict=True))


class ResidualBlock(nn.Module):
    """Two weight-normed 3x3 convolutions around an expansion, with the injection between them.

    Args:
        channels: channels of the branch.
        expansion: hidden channels relative to `channels`.
        groups: groups of the GroupNorms.
        dropout: probability of the variational dropout.
    """

    def __init__(self, channels: int, expansion: int, groups: int, dropout: float) -> None:
        super().__init__()
        hidden = expansion * channels
        self.conv1 = WeightNormConv2d(channels, hidden, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, hidden)
        self.conv2 = WeightNormConv2d(hidden, channels, 3, padding=1, bias=False)
        self.dropout = VariationalDropout2d(dropout)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.norm3 = nn.GroupNorm(groups, channels)

    def forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        """Return the block's output; the injection is added after dropout and before the second norm."""
        hidden = F.relu(self.norm1(self.conv1(z)))
        residual = self.dropout(self.conv2(hidden))
        if u is not None:
            residual = residual + u
        return self.norm3(F.relu(self.norm2(residual) + z))


class Fusion(nn.Module):
    """Adds to one branch all others, brought to its channels and resolution.

    Args:
        target: index of the branch.
        channels: channels of each branch.
        groups: groups of the GroupNorms.
    """

    def __init__(self, target: int, channels: Sequence[int], groups: int) -> None:
        super().__init__()
        self.target = target
        self.others = [j for j in range(len(channels)) if j != target]
        self.paths = nn.ModuleList(
            _up(channels[j], channels[target], groups)
            if j > target
            else _down(channels[j], channels[target], target - j, groups)
            for j in self.others
        )

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        """Return the sum, of the shape of the target branch."""
        total = branches[self.target]
        for j, path in zip(self.others, self.paths, strict=True):
            part = path(branches[j])
            if j > self.target:
                part = F.interpolate(part, size=total.shape[2:], mode="nearest")
            total = total + part
        return total


class Head(nn.Module):
    """Bottlenecks on every branch, summed from fine to coarse, then pooling and a linear classifier.

    Args:
        channels: channels of each branch.
        head_channels: width of each bottleneck; its output has four times as many.
        final_channels: channels before the pooling.
        num_classes: classes to predict.
    """

    def __init__(
        self, channels: Sequence[int], head_channels: Sequence[int], final_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.bottlenecks = nn.ModuleList(Bottleneck(c, h) for c, h in zip(channels, head_channels, strict=True))
        self.downs = nn.ModuleList(
            _conv_norm_relu(4 * fine, 4 * coarse, 3, stride=2, bias=True) for fine, coarse in pairwise(head_channels)
        )
        self.final = _conv_norm_relu(4 * head_channels[-1], final_channels, 1, bias=True)
        self.classifier = nn.Linear(final_channels, num_classes)

    def forward(self, z: States) -> Tensor:
        """Return the logits."""
        features = [bottleneck(part) for bottleneck, part in zip(self.bottlenecks, z, strict=True)]
        total = features[0]
        for down, feature in zip(self.downs, features[1:], strict=True):
            total = feature + down(total)
        return self.classifier(self.final(total).mean(dim=(2, 3)))


class Bottleneck(nn.Module):
    """The residual bottleneck of ResNet, whose inner BatchNorms have no parameters.

    Args:
        channels: input channels.
        width: inner channels; the output has four times as many.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width, affine=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, affine=False),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width, affine=False),
        )
        self.skip = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 4·width, height, width)."""
        return F.relu(self.body(x) + self.skip(x))


def _check_sizes(channels: Sequence[int], head_channels: Sequence[int], groups: int, downsample: int) -> None:
    if not channels or len(head_channels) != len(channels):
        raise ValueError(
            f"`head_channels` must have one entry for each entry of `channels`, got {list(head_channels)} for "
            f"{list(channels)}."
        )
    if groups < 2 or groups % 2 or any(c % groups for c in channels):
        raise ValueError(
            f"`groups` must be even and divide every entry of `channels`, got {groups} for {list(channels)}."
        )
    if downsample not in (0, 1, 2):
        raise ValueError(f"`downsample` must be 0, 1 or 2, got {downsample}.")


def _conv_norm_relu(inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _stem(in_channels: int, channels: Sequence[int], downsample: int) -> nn.Sequential:
    """Make the layers of the injection; only the smallest models go without the last one."""
    width = channels[0]
    stem = nn.Sequential(
        _conv_norm_relu(in_channels, width, 3, stride=2 if downsample >= 1 else 1),
        _conv_norm_relu(width, width, 3, stride=2 if downsample >= 2 else 1),
    )
    if downsample > 0 or len(channels) > 2:
        stem.append(_conv_norm_relu(width, width, 1))
    return stem


def _up(coarse: int, fine: int, groups: int) -> nn.Sequential:
    """Make the layers before the upsampling, which is done where the target's size is known."""
    return nn.Sequential(nn.Conv2d(coarse, fine, 1, bias=False), nn.GroupNorm(groups, fine))


def _down(fine: int, coarse: int, halvings: int, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(halvings - 1):
        layers += [nn.Conv2d(fine, fine, 3, 2, 1, bias=False), nn.GroupNorm(groups, fine), nn.ReLU()]
    layers += [nn.Conv2d(fine, coarse, 3, 2, 1, bias=False), nn.GroupNorm(groups, coarse)]
    return nn.Sequential(*layers)
