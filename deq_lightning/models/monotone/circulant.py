"""Circular 3x3 convolutions, which the Fourier transform turns into one small matrix per frequency."""

import torch
import torch.nn.functional as F
from torch import Tensor


def circular(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolve on the torus, as `torch.nn.Conv2d` does with `padding_mode="circular"`.

    Args:
        x: (batch, in, height, width).
        weight: (out, in, 3, 3).
        stride: 1, or 2 on maps of even size.
    """
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, stride=stride)


def adjoint(weight: Tensor) -> Tensor:
    """Return the kernel of the transposed convolution of stride 1."""
    return weight.flip(2, 3).transpose(0, 1)


def circular_transposed(x: Tensor, weight: Tensor) -> Tensor:
    """Return the transposed stride-2 convolution, from (batch, out, n / 2, n / 2) to (batch, in, n, n)."""
    wide = F.conv_transpose2d(x, weight, stride=2)
    return _fold(_fold(wide, 2), 3)


def _fold(x: Tensor, dim: int) -> Tensor:
    """Add the first row, which lies one before the map, to the last, where it lies on the torus."""
    first, middle, last = x.split([1, x.shape[dim] - 2, 1], dim)
    return torch.cat([middle, first + last], dim)


def transfer(weight: Tensor, size: int) -> Tensor:
    """Return what a convolution of stride 1 is at every frequency of maps of height and width `size`.

    Returns:
        (size, size // 2 + 1, out, in), complex: the half of the frequencies that determines the other.
    """
    options = {"dtype": weight.dtype, "device": weight.device}
    rows = _phases(torch.fft.fftfreq(size, **options))
    columns = _phases(torch.fft.rfftfreq(size, **options))
    return torch.einsum("rk,cl,oikl->rcoi", rows, columns, weight.to(rows.dtype))


def _phases(frequencies: Tensor) -> Tensor:
    """Return what shifts by −1, 0 and 1 pixels are at these frequencies, (frequencies, 3)."""
    offsets = torch.arange(-1, 2, device=frequencies.device)
    return torch.exp(2j * torch.pi * torch.outer(frequencies, offsets))


def decimated(blocks: Tensor, size: int) -> Tensor:
    """Return S C Sᵀ at every frequency of the map of half the size, where S keeps every second row and column.

    Args:
        blocks: C at every frequency, as `transfer` returns it.
        size: height and width of the map, even.
    """
    kernel = torch.fft.irfft2(blocks, s=(size, size), dim=(0, 1))
    return torch.fft.rfft2(kernel[::2, ::2], dim=(0, 1))


def filtered(x: Tensor, blocks: Tensor) -> Tensor:
    """Multiply (batch, in, n, n) by the matrix of each frequency, to (batch, out, n, n)."""
    spectrum = torch.einsum("hwoi,bihw->bohw", blocks, torch.fft.rfft2(x))
    return torch.fft.irfft2(spectrum, s=x.shape[2:])
