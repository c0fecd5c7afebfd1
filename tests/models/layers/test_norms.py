"""Normalisation in every memory format and direction of differentiation."""

import pytest
import torch
from torch import nn

from deq_lightning.gradients.jacobian import Jacobian
from deq_lightning.models.layers.norms import GroupNorm

FORMATS = {"first": torch.contiguous_format, "last": torch.channels_last}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_forward_and_backward_products_are_of_one_jacobian(memory_format: torch.memory_format, affine: bool) -> None:
    torch.manual_seed(0)
    norm, conv = GroupNorm(2, 6, affine=affine).double(), nn.Conv2d(6, 6, 3, padding=1).double()
    conv.to(memory_format=memory_format)  # whose output then is of this format
    z, v, w = torch.randn(3, 2, 6, 4, 5, dtype=torch.float64)
    assert conv(z).is_contiguous(memory_format=memory_format)
    jacobian = Jacobian(lambda z: norm(conv(z)), z)
    v, w = v.flatten(1), w.flatten(1)
    torch.testing.assert_close((w * jacobian(v)).sum(), (jacobian.transposed(w) * v).sum())
    step = 1e-6 * v.view_as(z)
    difference = (norm(conv(z + step)) - norm(conv(z - step))).flatten(1) / 2e-6
    torch.testing.assert_close(jacobian(v), difference, rtol=1e-5, atol=1e-7)
