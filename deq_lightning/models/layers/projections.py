"""Bringing weights back to where a model is well-posed; in place, and without waiting for the device."""

import math

import torch
from torch import Tensor

FREQUENCIES = 12  # along each axis; between them the norm rises by 7 % at most
SQUARINGS = 4  # of 32 channels the bound is then 6 % too high at most


def clamp_singular_values_(weight: Tensor, bound: float) -> None:
    """Replace every singular value of the matrix above `bound` by it: the nearest matrix of that spectral norm."""
    full = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))  # there is no half-precision one
    left, values, right = torch.linalg.svd(full, full_matrices=False)
    weight.data.copy_((left * values.clamp_max(bound)) @ right)


def clamp_convolution_(weight: Tensor, bound: float) -> None:
    """Shrink the kernels of a convolution (out, in, 3, 3) until its spectral norm is `bound` or less."""
    weight.data.mul_((bound / convolution_norm(weight)).clamp_max(1))


def convolution_norm(weight: Tensor) -> Tensor:
    """Return an upper bound of the spectral norm of a convolution (out, in, 3, 3) on images of any size.

    Beyond the edges of the image is either nothing or the image again. The bound is that of the matrices that the
    convolution is at `FREQUENCIES`² frequencies, and what their norms can rise to in between.

    References:
        Delattre et al., "Efficient bound of Lipschitz constant for convolutional layers by Gram iteration", ICML 2023.
        Ehlich and Zeller, "Schwankung von Polynomen zwischen Gitterpunkten", Math. Zeitschrift 86, 1964.
    """
    full = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if full.shape[0] < full.shape[1]:
        full = full.transpose(0, 1)  # the smaller product of the two
    matrices = torch.fft.rfft2(full, s=(FREQUENCIES, FREQUENCIES)).movedim((2, 3), (0, 1))
    power, log = matrices.mH @ matrices, full.new_zeros(matrices.shape[:2])
    for _ in range(SQUARINGS):  # ‖M‖² ≤ ‖(Mᴴ M)ⁿ‖_F^(1/n)
        size = torch.linalg.matrix_norm(power).clamp_min(torch.finfo(full.dtype).tiny)
        power, log = power / size[..., None, None], log + size.log()
        power, log = power @ power, 2 * log
    log = (log + torch.linalg.matrix_norm(power).log()) / 2 ** (SQUARINGS + 1)
    return log.amax().exp().to(weight) / math.cos(math.pi / FREQUENCIES) ** 2


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
