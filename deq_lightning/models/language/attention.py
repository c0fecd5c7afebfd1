"""Causal attention by content and distance, for maps that evaluate it many times between the same memory and words."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.models.base import Shared
from deq_lightning.models.layers.differentiation import differentiated
from deq_lightning.models.layers.frozen import VariationalDropout, WeightNormLinear


@dataclass
class Positions(Shared):
    """What attention needs of the positions, the same for all samples.

    Args:
        keys: (heads, head width, keys + 1) projected codes over the root of the head width, by falling distance, from
            that of the last query to the first key down to 0; then a column of zeros.
        future: (queries, keys) whether the key is later than the query.
    """

    keys: Tensor
    future: Tensor


class AttentionInjection(NamedTuple):
    """What attention needs beside the state."""

    qkv: Tensor  # (batch, length, 3·width) added to queries, keys and values
    memory: Tensor  # (batch, memory, 2·width) keys and values of the positions before
    positions: Positions


class RelativeAttention(nn.Module):
    r"""Multi-head attention to the memory and, causally, to the states themselves, with relative positions.

    The score of query i and key j is :math:`((q_i + r_w)^\top k_j + (q_i + r_r)^\top R_{i-j}) / \sqrt{d_h}`, where
    :math:`R_{i-j} = W_r s_{i-j}` is the projection of sinusoids of the distance. The injection is added to queries,
    keys and values. All but its biases are weight-normed.

    It is written out where anything is differentiated: the fast kernels of `scaled_dot_product_attention` can neither
    be differentiated twice or in forward mode, nor drop the same probabilities at every evaluation.

    Args:
        width: of the states, even, and a multiple of `heads`.
        heads: of attention.
        dropout: probability to drop an attention probability, one mask per solve.
        position_dropout: probability to drop a feature of all position codes.

    Shapes:
        States (batch, length, width) to the same.

    References:
        Dai et al., "Transformer-XL: attentive language models beyond a fixed-length context", 2019, arXiv:1901.02860.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, position_dropout: float = 0.0) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.qkv = WeightNormLinear(width, 3 * width, bias=False)
        self.position = WeightNormLinear(width, width, bias=False)
        self.out = WeightNormLinear(width, width)
        self.content_bias = nn.Parameter(torch.zeros(heads, 1, 1, width // heads))
        self.position_bias = nn.Parameter(torch.zeros(heads, 1, 1, width // heads))
        self.dropout = VariationalDropout(dropout)
        self.position_dropout = VariationalDropout(position_dropout, shared=(0,))

    def memorise(self, z: Tensor, u: Tensor) -> Tensor:
        """Return keys and values (batch, memory, 2·width) of states with their injections (batch, memory, 3·width)."""
        return F.linear(z, self.qkv.effective_weight()[self.width :]) + u[..., self.width :]

    def positions(self, length: int, memory: int) -> Positions:
        """Return what the queries of a segment of `length` after a memory need to know of positions."""
        codes = sinusoids(length + memory, self.width, like=self.content_bias)
        codes = self.position(self.position_dropout(codes)) / math.sqrt(self.width // self.heads)
        keys = codes.unflatten(1, (self.heads, -1)).permute(1, 2, 0)
        future = torch.ones(length, length + memory, dtype=torch.bool, device=keys.device).triu(memory + 1)
        return Positions(F.pad(keys, (0, 1)), future)

    def forward(self, z: Tensor, u: AttentionInjection) -> Tensor:
        """Return the attention of the states."""
        own = self.qkv(z) + u.qkv
        q = self._by_head(own[..., : self.width], 1)[0].contiguous()
        k, v = torch.cat([self._by_head(u.memory, 2), self._by_head(own[..., self.width :], 2)], dim=3).flatten(1, 2)
        if self.dropout.active or differentiated():
            heads = torch.bmm(self.dropout(self._scores(q, k, u.positions).softmax(dim=-1)), v)
        else:
            bias = self._bias(q, u.positions).masked_fill(u.positions.future, -math.inf)
            heads = F.scaled_dot_product_attention(self._content(q)[None], k[None], v[None], bias[None])[0]
        return self.out(heads.unflatten(0, q.shape[:2]).permute(1, 2, 0, 3).flatten(2))

    def _by_head(self, x: Tensor, parts: int) -> Tensor:
        """Turn (batch, length, parts·width) to (parts, heads, batch, length, head width)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 3, 0, 1, 4)

    def _content(self, q: Tensor) -> Tensor:
        return (q + self.content_bias).flatten(0, 1)

    def _bias(self, q: Tensor, positions: Positions) -> Tensor:
        """Return the part of the scores that is of distances, (heads·batch, queries, keys)."""
        by_distance = torch.bmm((q + self.position_bias).flatten(1, 2), positions.keys)
        return shift(by_distance.unflatten(1, q.shape[1:3])).flatten(0, 1)

    def _scores(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """Return (heads·batch, queries, keys), −∞ where the key is later than the query."""
        scale = 1 / math.sqrt(q.shape[-1])
        scores = torch.baddbmm(self._bias(q, positions), self._content(q), k.transpose(1, 2), alpha=scale)
        return scores.masked_fill_(positions.future, -math.inf)


def sinusoids(count: int, width: int, like: Tensor) -> Tensor:
    """Return the codes (count, width) of the distances count − 1 to 0: half sines, half cosines."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision has not all distances
    distances = torch.arange(count - 1, -1, -1, dtype=dtype, device=like.device)
    exponents = torch.arange(0, width, 2, dtype=dtype, device=like.device) / width
    angles = distances[:, None] / 10000**exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)


def shift(by_distance: Tensor) -> Tensor:
    """Turn columns from distances to keys, without a copy.

    Args:
        by_distance: (..., queries, keys + 1) by falling distance, with one more column.

    Returns:
        (..., queries, keys), arbitrary where the key is later than the query.
    """
    queries, columns = by_distance.shape[-2:]
    # Each query has its keys one column further left than the query before, so rows one column shorter line them up.
    start, keys = queries - 1, columns - 1
    return by_distance.flatten(-2)[..., start : start + queries * keys].unflatten(-1, (queries, keys))
