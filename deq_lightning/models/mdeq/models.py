"""Multiscale deep equilibrium models, for images and for their pixels."""

from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import above, one_of, several_sizes, sizes, whole
from deq_lightning.models.base import ImplicitModel
from deq_lightning.models.layers.frozen import WeightNormConv2d
from deq_lightning.models.mdeq.cell import Head, MultiscaleCell, States, WeightNormScope, conv_norm_relu, make_stem
from deq_lightning.solvers import Broyden, Solver


class Multiscale(ImplicitModel):
    """What the multiscale models share: stem, equilibrium module and its state; subclasses bring the head.

    Args:
        in_channels: channels of the images.
        channels: channels of each branch, finest resolution first; each branch halves the resolution of the one before.
        expansion: how many times wider a residual block is inside.
        groups: groups of the GroupNorms; divides every entry of `channels`. The last norm of the cell has half as many.
        downsample: stride-2 convolutions in the stem, 0 to 2.
        dropout: probability to drop a channel in the residual blocks, with one mask for the whole solve; in [0, 1).
        post_affine: whether the last norm of the cell has parameters.
        weight_norm: which convolutions of the cell are weight-normed: those of the residual blocks, also the last one
            of each branch, or all.
        solver: finds the equilibrium. None: `Broyden()`.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        expansion: int,
        groups: int,
        downsample: int,
        dropout: float,
        post_affine: bool,
        weight_norm: WeightNormScope,
        solver: Solver | None,
    ) -> None:
        super().__init__(solver or Broyden())
        _check_sizes(in_channels, channels, expansion, groups, downsample, weight_norm)
        self.stem = make_stem(in_channels, channels, downsample)
        self.equilibrium_module = MultiscaleCell(channels, expansion, groups, dropout, post_affine, weight_norm)

    def initialise(self, std: float | None) -> None:
        """Draw every convolution from N(0, std²), but for the weight-normed ones: those keep PyTorch's default.

        The published code draws these too, but overwrites the draw before it is ever used. None leaves all as they are.
        """
        if std is not None:
            above(0, "For PyTorch's own pass `net.init_std=None`.", init_std=std)
        for module in self.modules():
            if std is not None and isinstance(module, nn.Conv2d) and not isinstance(module, WeightNormConv2d):
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


class MDEQ(Multiscale):
    r"""Multiscale deep equilibrium model: one equilibrium over feature maps of several resolutions at once.

    The defaults are MDEQ-Tiny for CIFAR-10 ("170K" in the papers, 158,986 parameters in fact). The other published
    sizes, with `channels` 32, 64, 128, 256 where nothing else is said:

    - CIFAR-10 large ("10M", 11,098,398): `head_channels` 14, 28, 56, 112, `final_channels` 1680.
    - ImageNet small ("18M", 16,808,936): `head_channels` 24, 48, 96, 192, `final_channels` 2048, `downsample` 2,
      `num_classes` 1000, `init_std` null.
    - ImageNet small with Jacobian regularisation (18,613,496): as small, but `head_channels` 28, 56, 112, 224 and
      `post_affine` false.
    - ImageNet large (67,063,624): as small, but `channels` 80, 160, 320, 640 and `head_channels` 32, 64, 128, 256.
    - ImageNet XL (90,463,280): as large, but `channels` 88, 176, 352, 704 and `expansion` 6.

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
        post_affine: whether the last norm of the cell has parameters, as in the original models; those with Jacobian
            regularisation have none.
        weight_norm: which convolutions of the cell are weight-normed: those of the residual blocks, also the last one
            of each branch (as in the papers' code), or all (as in torchdeq's CIFAR models).

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
        post_affine: bool = True,
        weight_norm: WeightNormScope = "blocks_and_post",
    ) -> None:
        several_sizes(channels=channels, head_channels=head_channels)
        sizes(num_classes=num_classes, final_channels=final_channels)
        if len(head_channels) != len(channels):
            raise ValueError(
                f"`head_channels` must have one entry for each entry of `channels`, got {list(head_channels)} for "
                f"{list(channels)}."
            )
        super().__init__(
            in_channels, channels, expansion, groups, downsample, dropout, post_affine, weight_norm, solver
        )
        self.head = Head(channels, head_channels, final_channels, num_classes)
        self.initialise(init_std)

    def readout(self, z: States) -> Tensor:
        """Return the logits."""
        return self.head(z)


class MDEQSegmentation(Multiscale):
    r"""Multiscale deep equilibrium model that labels every pixel.

    The defaults are the small model for Cityscapes (8,968,467 parameters). Large (55,955,859): `channels` 80, 160,
    320, 640; XL (79,551,755): `channels` 88, 176, 352, 704 and `expansion` 6.

    Args:
        in_channels: channels of the images.
        num_classes: classes of a pixel.
        channels: channels of each branch, finest resolution first; each branch halves the resolution of the one before.
        expansion: how many times wider a residual block is inside.
        groups: groups of the GroupNorms; divides every entry of `channels`. The last norm of the cell has half as many.
        downsample: stride-2 convolutions in the stem, 0 to 2.
        dropout: probability to drop a channel in the residual blocks, with one mask for the whole solve; in [0, 1).
        init_std: standard deviation of the normal initialisation of the convolutions without weight normalisation.
            None: PyTorch's default initialisation.
        solver: finds the equilibrium. None: `Broyden()`.
        post_affine: whether the last norm of the cell has parameters.
        weight_norm: which convolutions of the cell are weight-normed: those of the residual blocks, also the last one
            of each branch (as in the papers' code), or all.

    Shapes:
        Images (batch, in_channels, height, width) to logits (batch, num_classes, height / 2^downsample, width /
        2^downsample); the loss brings them to the size of the labels.

    Raises:
        ValueError: if the sizes do not fit each other.

    References:
        Bai, Koltun and Kolter, "Multiscale deep equilibrium models", NeurIPS 2020, arXiv:2006.08656.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 19,
        channels: Sequence[int] = (32, 64, 128, 256),
        expansion: int = 5,
        groups: int = 8,
        downsample: int = 2,
        dropout: float = 0.0,
        init_std: float | None = 0.01,
        solver: Solver | None = None,
        post_affine: bool = True,
        weight_norm: WeightNormScope = "blocks_and_post",
    ) -> None:
        sizes(num_classes=num_classes)
        super().__init__(
            in_channels, channels, expansion, groups, downsample, dropout, post_affine, weight_norm, solver
        )
        width = sum(channels)
        mixed = conv_norm_relu(width, width, 1, bias=True)
        self.head = nn.Sequential(mixed, nn.Conv2d(width, num_classes, 1))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01  # the batches are of a few large images
        self.initialise(init_std)

    def readout(self, z: States) -> Tensor:
        """Return the logits of every pixel of the finest branch."""
        size = z[0].shape[2:]
        coarse = [F.interpolate(part, size=size, mode="bilinear", align_corners=True) for part in z[1:]]
        return self.head(torch.cat([z[0], *coarse], dim=1))


def _check_sizes(
    in_channels: int, channels: Sequence[int], expansion: int, groups: int, downsample: int, weight_norm: str
) -> None:
    several_sizes(channels=channels)
    sizes(in_channels=in_channels, expansion=expansion)
    sizes(2, groups=groups)
    whole(0, downsample=downsample)
    if groups % 2 or any(c % groups for c in channels):
        raise ValueError(
            f"`groups` must be even and divide every entry of `channels`, got {groups} for {list(channels)}."
        )
    one_of((0, 1, 2), downsample=downsample)
    one_of(get_args(WeightNormScope), weight_norm=weight_norm)
