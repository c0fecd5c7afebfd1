"""The two maps that solvers are timed on."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Map(NamedTuple):
    """A fixed-point map and where its solves start."""

    f: Callable[[Tensor], Tensor]
    z0: Tensor


def tanh(radius: float = 0.9, dim: int = 256, batch: int = 128) -> Map:
    """Make a cheap map, on which the solver's own work shows: tanh of W z + u, W of the given spectral radius."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(dim, dim, generator=generator)
    weight = (radius * weight / torch.linalg.eigvals(weight).abs().max()).T.contiguous()
    injection = torch.randn(batch, dim, generator=generator)
    return Map(lambda z: torch.tanh(torch.addmm(injection, z, weight)), torch.zeros(batch, dim))


def conv(channels: int = 64, size: int = 16, batch: int = 16, std: float = 0.02) -> Map:
    """Return a residual block of two 3x3 convolutions with GroupNorm(8): the shape of a vision model's cell."""
    torch.manual_seed(0)
    first, second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
    for layer in (first, second):
        nn.init.normal_(layer.weight, std=std)
    norms = [nn.GroupNorm(8, channels) for _ in range(3)]
    injection = torch.randn(batch, channels, size, size)

    def f(z: Tensor) -> Tensor:
        residual = injection + second(norms[0](F.relu(first(z))))
        return norms[2](F.relu(z + norms[1](residual)))

    return Map(f, torch.zeros(batch, channels, size, size))


MAPS = {"tanh": tanh, "conv": conv}
