"""Normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.models.layers.differentiation import carries_tangent


class GroupNorm(nn.GroupNorm):
    """Group normalisation that has a derivative in forward mode in every memory format.

    PyTorch's own (2.11) takes a view there that channels at the end do not allow.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the groups of every sample."""
        return super().forward(input.contiguous() if carries_tangent(input) else input)


class PositionNorm(nn.GroupNorm):
    """Group normalisation over the channels of one position alone: a map with it does not know the size of its input.

    (batch, channels, ...) to the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the groups of every position, as layers: faster than as many small samples."""
        groups = input.movedim(1, -1).unflatten(-1, (self.num_groups, -1))
        rows = F.layer_norm(groups, groups.shape[-1:], eps=self.eps).flatten(-2)
        return torch.addcmul(self.bias, rows, self.weight).movedim(-1, 1)
