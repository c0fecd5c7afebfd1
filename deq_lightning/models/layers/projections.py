"""Bringing weights back to where a model is well-posed; in place, and without waiting for the device."""

import torch
from torch import Tensor


def clamp_singular_values_(weight: Tensor, bound: float) -> None:
    """Replace every singular value of the matrix above `bound` by it: the nearest matrix of that spectral norm."""
    full = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))  # there is no half-precision one
    left, values, right = torch.linalg.svd(full, full_matrices=False)
    weight.data.copy_((left * values.clamp_max(bound)) @ right)


def average_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a value that every process has measured on its own samples."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def project_rows_to_l1_ball_(weight: Tensor, radius: float) -> None:
    """Replace every row whose absolute values add up to more than `radius` by the nearest one that is within.

    That is soft thresholding, by the threshold that makes the sum equal to the radius.

    References:
        Duchi et al., "Efficient projections onto the l1-ball for learning in high dimensions", ICML 2008, figure 1.
    """
    size = weight.detach().abs()
    largest = size.sort(dim=1, descending=True).values
    excess = largest.cumsum(dim=1) - radius
    place = torch.arange(1, weight.shape[1] + 1, device=weight.device)
    kept = (largest * place > excess).sum(dim=1, keepdim=True)  # entries that stay away from zero
    kept = kept.clamp_min(1)  # in a row that is not finite none compares; it stays as it is, for the guard to see
    threshold = (excess.gather(1, kept - 1) / kept).clamp_min(0)
    weight.data.copy_(weight.detach().sign() * (size - threshold).clamp_min(0))
