"""The layers of multiscale equilibrium models."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.models.layers.frozen import VariationalDropout, WeightNormConv2d
from deq_lightning.models.layers.norms import GroupNorm

States = tuple[Tensor, ...]
WeightNormScope = Literal["blocks", "blocks_and_post", "all"]  # which convolutions have it


class MultiscaleCell(nn.Module):
    """One evaluation of the equilibrium module: a residual block per branch, then every branch sums all others.

    With a single branch it is the residual block alone.

    Args:
        channels: channels of each branch.
        expansion: width of the blocks relative to `channels`.
        groups: groups of the GroupNorms.
        dropout: probability of the variational dropout in the blocks.
        post_affine: whether the last norm has parameters.
        weight_norm: which convolutions are weight-normed.
    """

    def __init__(
        self,
        channels: Sequence[int],
        expansion: int,
        groups: int,
        dropout: float,
        post_affine: bool,
        weight_norm: WeightNormScope,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        post = nn.Conv2d if weight_norm == "blocks" else WeightNormConv2d
        fusion = WeightNormConv2d if weight_norm == "all" else nn.Conv2d
        self.blocks = nn.ModuleList(ResidualBlock(c, expansion, groups, dropout) for c in channels)
        self.fusions = nn.ModuleList()
        self.post = nn.ModuleList()
        if len(channels) > 1:
            self.fusions.extend(Fusion(i, channels, groups, fusion) for i in range(len(channels)))
            self.post.extend(
                nn.Sequential(nn.ReLU(), post(c, c, 1, bias=False), GroupNorm(groups // 2, c, affine=post_affine))
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
        self.norm1 = GroupNorm(groups, hidden)
        self.conv2 = WeightNormConv2d(hidden, channels, 3, padding=1, bias=False)
        self.dropout = VariationalDropout(dropout, shared=(2, 3))
        self.norm2 = GroupNorm(groups, channels)
        self.norm3 = GroupNorm(groups, channels)

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
        conv: the convolution, weight-normed or not.
    """

    def __init__(self, target: int, channels: Sequence[int], groups: int, conv: type[nn.Conv2d]) -> None:
        super().__init__()
        self.target = target
        self.others = [j for j in range(len(channels)) if j != target]
        self.paths = nn.ModuleList(
            _up(channels[j], channels[target], groups, conv)
            if j > target
            else _down(channels[j], channels[target], target - j, groups, conv)
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
            conv_norm_relu(4 * fine, 4 * coarse, 3, stride=2, bias=True) for fine, coarse in pairwise(head_channels)
        )
        self.final = conv_norm_relu(4 * head_channels[-1], final_channels, 1, bias=True)
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


def conv_norm_relu(inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """Return a convolution that keeps the size (or divides it by the stride), with BatchNorm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def make_stem(in_channels: int, channels: Sequence[int], downsample: int) -> nn.Sequential:
    """Make the layers of the injection; only the smallest models go without the last one."""
    width = channels[0]
    stem = nn.Sequential(
        conv_norm_relu(in_channels, width, 3, stride=2 if downsample >= 1 else 1),
        conv_norm_relu(width, width, 3, stride=2 if downsample >= 2 else 1),
    )
    if downsample > 0 or len(channels) > 2:
        stem.append(conv_norm_relu(width, width, 1))
    return stem


def _up(coarse: int, fine: int, groups: int, conv: type[nn.Conv2d]) -> nn.Sequential:
    """Make the layers before the upsampling, which is done where the target's size is known."""
    return nn.Sequential(conv(coarse, fine, 1, bias=False), GroupNorm(groups, fine))


def _down(fine: int, coarse: int, halvings: int, groups: int, conv: type[nn.Conv2d]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(halvings - 1):
        layers += [conv(fine, fine, 3, 2, 1, bias=False), GroupNorm(groups, fine), nn.ReLU()]
    layers += [conv(fine, coarse, 3, 2, 1, bias=False), GroupNorm(groups, coarse)]
    return nn.Sequential(*layers)
