"""The maps that solvers and gradients are measured on."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning import Anderson, Broyden, FixedPointIteration, Solver


class Map(NamedTuple):
    """A fixed-point map, where its solves start, and what its gradients are taken in."""

    f: Callable[[Tensor], Tensor]
    z0: Tensor
    parameters: list[Tensor]


def tanh(radius: float = 0.9, dim: int = 256, batch: int = 128) -> Map:
    """Make a cheap map, on which the solver's own work shows: tanh of W z + u, W of the given spectral radius."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(dim, dim, generator=generator)
    weight = (radius * weight / torch.linalg.eigvals(weight).abs().max()).T.contiguous().requires_grad_()
    injection = torch.randn(batch, dim, generator=generator).requires_grad_()
    return Map(lambda z: torch.tanh(torch.addmm(injection, z, weight)), torch.zeros(batch, dim), [weight, injection])


def conv(channels: int = 64, size: int = 16, batch: int = 16, std: float = 0.02) -> Map:
    """Return a residual block of two 3x3 convolutions with GroupNorm(8): the shape of a vision model's cell."""
    torch.manual_seed(0)
    first, second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
    for layer in (first, second):
        nn.init.normal_(layer.weight, std=std)
    norms = [nn.GroupNorm(8, channels) for _ in range(3)]
    injection = torch.randn(batch, channels, size, size).requires_grad_()

    def f(z: Tensor) -> Tensor:
        residual = injection + second(norms[0](F.relu(first(z))))
        return norms[2](F.relu(z + norms[1](residual)))

    parameters = [*first.parameters(), *second.parameters(), *(one for norm in norms for one in norm.parameters())]
    return Map(f, torch.zeros(batch, channels, size, size), [*parameters, injection])


def transformer(width: int = 128, heads: int = 4, length: int = 64, batch: int = 8) -> Map:
    """Return a causal post-norm transformer block: LN(z' + FFN(z')) with z' = LN(z + attention(z + u))."""
    torch.manual_seed(0)
    qkv, out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
    norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
    injection = torch.randn(batch, length, width).requires_grad_()

    def f(z: Tensor) -> Tensor:
        q, k, v = qkv(z + injection).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        z = norms[0](z + out(mixed))
        return norms[1](z + ffn(z))

    layers = nn.ModuleList([qkv, out, ffn, norms])
    return Map(f, torch.zeros(batch, length, width), [*layers.parameters(), injection])


MAPS = {"tanh": tanh, "conv": conv}
SOLVERS: dict[str, Callable[[int], Solver]] = {
    "FixedPointIteration": lambda steps: FixedPointIteration(steps, rtol=0),
    "Anderson(6)": lambda steps: Anderson(steps, rtol=0, history=6),
    "Broyden(12)": lambda steps: Broyden(steps, rtol=0, history=12),
}
