"""The two parts of a transformer's layer, each of which may be iterated to a fixed point."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.models.base import ImplicitModel, Shared
from deq_lightning.models.layers.differentiation import differentiated
from deq_lightning.solvers import Solver


@dataclass
class Distances(Shared):
    """What attention adds to the scores for the distance of query and key, the same for all samples."""

    bias: Tensor  # (heads, queries, keys), −∞ where the key is later than the query


class Entering(NamedTuple):
    """What a part of a layer may look at."""

    h: Tensor  # (streams, length, width)
    before: Tensor  # (streams, memory, width) what entered the same part at the positions before
    distances: Distances


class Heads(NamedTuple):
    """What the step of attention needs beside its state."""

    q: Tensor  # (streams, heads, length, head width)
    k: Tensor  # (streams, heads, memory + length, head width)
    v: Tensor  # likewise
    distances: Distances
    once: Tensor  # (streams, length, width) attention in an ordinary pass


class Inner(NamedTuple):
    """What the step of the feed-forward part needs beside its state."""

    x: Tensor  # (streams, length, inner_width) before the activation
    once: Tensor  # (streams, length, width) its value in an ordinary pass


class Part(ImplicitModel):
    """What attention and feed-forward have in common: a norm before, and a state that is fed back.

    Args:
        width: of what enters.
        inner_width: of what the state is projected to.
        scale: length of the rows of the matrix by which it is.
        iterated: whether there are fixed points at all.
        solver: finds them.
    """

    def __init__(self, width: int, inner_width: int, scale: float, iterated: bool, solver: Solver) -> None:
        super().__init__(solver)
        self.norm = nn.LayerNorm(width)
        self.scale = scale
        self.feedback = nn.Linear(width, inner_width, bias=False) if iterated else None

    def initial_state(self, u: Heads | Inner) -> Tensor:
        """Return the value in an ordinary pass."""
        return u.once.to(self.norm.weight.dtype)

    def fed_back(self, z: Tensor) -> Tensor:
        r"""Return what the state adds to the next step: :math:`s \bar W z / \sqrt{1 + \mathrm{mean}(z^2)}`.

        The rows of :math:`\bar W` have length 1. So it is bounded, and changes the less with the state the larger that
        is; linear maps alone were seen to lose their fixed points within an epoch.
        """
        assert self.feedback is not None
        bounded = z * torch.rsqrt(1 + z.square().mean(dim=-1, keepdim=True))
        return F.linear(bounded, self.scale * F.normalize(self.feedback.weight, dim=1))


class FixedPointAttention(Part):
    r"""Causal attention :math:`A = \mathrm{softmax}((Q + f(A)) K^\top / \sqrt d + b)\,V` to itself and to a memory.

    The bias b falls linearly with the distance, in each head with another slope (ALiBi).

    Args:
        width: of what enters, a multiple of `heads`.
        heads: of attention.
        scale: s, the length of the rows of W.
        iterated: whether there are fixed points at all.
        solver: finds them.

    Shapes:
        `Entering` to (streams, length, width).

    References:
        Press, Smith and Lewis, "Train short, test long: attention with linear biases", ICLR 2022, arXiv:2108.12409.
    """

    def __init__(self, width: int, heads: int, scale: float, iterated: bool, solver: Solver) -> None:
        super().__init__(width, width, scale, iterated, solver)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def inject(self, x: Entering) -> Heads:
        """Return queries, keys and values, and what attention makes of them once."""
        own = self.norm(x.h)
        q = self._by_head(self.query(own))
        k, v = map(self._by_head, self.key_value(torch.cat([self.norm(x.before), own], dim=1)).chunk(2, dim=-1))
        return Heads(q, k, v, x.distances, attended(q, k, v, x.distances.bias))

    def cell(self, z: Tensor, u: Heads) -> Tensor:
        """Return the attention of queries that know what they have found."""
        return attended(u.q + self._by_head(self.fed_back(z)), u.k, u.v, u.distances.bias)

    def readout(self, z: Tensor) -> Tensor:
        """Return the projection of all heads."""
        return self.out(z)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FixedPointFeedForward(Part):
    r"""The feed-forward part :math:`F = W_2\,\mathrm{relu}(W_1 x + b_1 + g(F)) + b_2`.

    Args:
        width: of what enters.
        inner_width: of the hidden layer.
        scale: s, the length of the rows of W.
        iterated: whether there are fixed points at all.
        solver: finds them.

    Shapes:
        `Entering` to (streams, length, width).
    """

    def __init__(self, width: int, inner_width: int, scale: float, iterated: bool, solver: Solver) -> None:
        super().__init__(width, inner_width, scale, iterated, solver)
        self.inner = nn.Linear(width, inner_width)
        self.outer = nn.Linear(inner_width, width)

    def inject(self, x: Entering) -> Inner:
        """Return the inner layer before its activation, and what becomes of it once."""
        inner = self.inner(self.norm(x.h))
        return Inner(inner, self.outer(F.relu(inner)))

    def cell(self, z: Tensor, u: Inner) -> Tensor:
        """Return the next state."""
        return self.outer(F.relu(u.x + self.fed_back(z)))

    def readout(self, z: Tensor) -> Tensor:
        """Return the state."""
        return z


def distances(heads: int, length: int, memory: int, like: Tensor) -> Distances:
    """Return the biases of a segment of `length` after a memory; the slopes of the heads fall from 1 towards 2⁻⁸."""
    places = torch.arange(-memory, length, device=like.device)
    distance = places[memory:, None] - places
    slopes = 2 ** (-8 * torch.arange(1, heads + 1, device=like.device) / heads)
    bias = (-slopes[:, None, None] * distance).masked_fill(distance < 0, -math.inf)
    return Distances(bias.to(like.dtype))


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return the attention of all heads, (streams, length, width).

    It is written out where anything is differentiated: the fast kernels can neither be differentiated twice nor in
    forward mode.
    """
    if differentiated():
        found = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(dim=-1).to(v) @ v
    else:
        found = F.scaled_dot_product_attention(q, k, v, bias[None].to(q))
    return found.transpose(1, 2).flatten(2)
