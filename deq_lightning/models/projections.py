"""Bringing weights back to where a model is well-posed; in place, and without waiting for the device."""

import torch
from torch import Tensor


def clamp_singular_values_(weight: Tensor, bound: float) -> None:
    """Replace every singular value of the matrix above `bound` by it: the nearest matrix of that spectral norm."""
    left, values, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    weight.data.copy_((left * values.clamp_max(bound)) @ right)


def average_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a value that every process has measured on its own samples."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
