"""Normalisation."""

from torch import Tensor, nn

from deq_lightning.models.layers.differentiation import carries_tangent


class GroupNorm(nn.GroupNorm):
    """Group normalisation that has a derivative in forward mode in every memory format.

    PyTorch's own (2.11) takes a view there that channels at the end do not allow.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the groups of every sample."""
        return super().forward(input.contiguous() if carries_tangent(input) else input)
