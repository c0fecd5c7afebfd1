"""The network of recursive reasoners: post-norm blocks without biases."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import above, whole

Mixing = Literal["positions", "attention"]
EPSILON = 1e-5
ROTARY_BASE = 10_000.0
CUT = 0.87962566103423978  # deviation of the standard normal distribution cut at ±2


class Reasoning(nn.Module):
    """R(h, i): blocks of mixing over positions and a gated network over channels, on h + i.

    (batch, length, width) twice to the same.

    Args:
        width: numbers per position.
        layers: blocks, 1 or more.
        heads: of the attention.
        length: number of positions to mix by a gated network over them. None: attention.
        expansion: inner width of the gated networks relative to their input, before a factor of 2/3.
        multiple: inner widths are rounded up to a multiple of this.
        gain: scale of the last matrix of every gated network at the start.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, width: int, layers: int, heads: int, length: int | None, expansion: float, multiple: int, gain: float
    ) -> None:
        super().__init__()
        whole(1, heads=heads, multiple=multiple)
        above(0, expansion=expansion, init_gain=gain)
        if length is None and (width % heads or width // heads % 2):
            raise ValueError(
                f"`heads` must divide `width` and leave an even number to each, got {heads} for {width}. "
                "Use another of its divisors."
            )
        self.mixers = nn.ModuleList(
            Attention(width, heads) if length is None else OverPositions(length, expansion, multiple, gain)
            for _ in range(layers)
        )
        self.gated = nn.ModuleList(SwiGLU(width, expansion, multiple, gain) for _ in range(layers))

    def forward(self, h: Tensor, injection: Tensor) -> Tensor:
        """Return the blocks' output."""
        h = h + injection
        module: Any
        for pair in zip(self.mixers, self.gated, strict=True):
            for module in pair:
                h = rms_norm(h + module(h), module.normalised)
        return h


class SwiGLU(nn.Module):
    """A gated network: (silu(x G) * x U) D.

    Args:
        width: of input and output.
        expansion: inner width relative to it, before a factor of 2/3.
        multiple: the inner width is rounded up to a multiple of this.
        gain: scale of the last matrix at the start.

    References:
        Shazeer, "GLU variants improve transformer", 2020, arXiv:2002.05202.
    """

    normalised = -1  # dimension of the normalisation that follows

    def __init__(self, width: int, expansion: float, multiple: int, gain: float) -> None:
        super().__init__()
        inner = multiple * math.ceil(round(expansion * width * 2 / 3) / multiple)
        self.gate_and_up = linear(width, 2 * inner)
        self.down = linear(inner, width)
        with torch.no_grad():
            self.down.weight *= gain

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class OverPositions(SwiGLU):
    """The same over positions in place of channels; so is the normalisation after it."""

    normalised = 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Attention of all positions to all, which are rotated by their place.

    Args:
        width: of input and output.
        heads: they divide it.

    References:
        Su et al., "RoFormer", 2021, arXiv:2104.09864.
    """

    normalised = -1

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.all = linear(width, 3 * width)
        self.out = linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        query, key, value = self.all(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotated(query), rotated(key), value)
        return self.out(mixed.transpose(1, 2).flatten(2))


def rotated(x: Tensor) -> Tensor:
    """Rotate (..., length, dim), half of whose numbers are paired with the other half, by angles of their place."""
    length, half = x.shape[-2], x.shape[-1] // 2
    rates = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(length, device=x.device, dtype=torch.float32)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rms_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Divide by the root of the mean square along a dimension."""
    x = x.transpose(dim, -1)
    return F.rms_norm(x, x.shape[-1:], eps=EPSILON).transpose(dim, -1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Make a linear layer without a bias, with weights from LeCun's truncated normal distribution."""
    layer = nn.Linear(inputs, outputs, bias=False)
    lecun_normal_(layer.weight, inputs)
    return layer


def lecun_normal_(weight: Tensor, inputs: int) -> None:
    """Fill the weight with a normal distribution, cut at two deviations, whose variance after the cut is 1 / inputs."""
    std = inputs**-0.5 / CUT
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
