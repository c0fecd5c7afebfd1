"""The network's vocabulary: tied adaptive embedding and softmax, with no words in it.

The words themselves are a `Vocabulary` of the data module.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import above, several_sizes, sizes


class AdaptiveVocabulary(nn.Module):
    r"""Tied adaptive input embedding and adaptive softmax: the rarer a cluster of words, the narrower its vectors.

    Holds weights by word id; which word has which id is known to the data module's `Vocabulary` alone.

    Cluster i holds the words from ``cutoffs[i − 1]`` to ``cutoffs[i]`` and has a table :math:`E_i` of width / div_val^i
    columns, an input projection :math:`P_i` and biases. The head of the softmax predicts the words of the first cluster
    or one of the other clusters; their softmax then predicts the word. Tables and the projections of all clusters but
    the first are one parameter for input and output. Without cutoffs and with `div_val` 1 it is an ordinary tied
    softmax.

    The published code ties the projections' memory but not the parameters, so that it counts them twice and the
    optimizer steps on them twice.

    Args:
        vocab_size: number of words, which are in order of decreasing frequency.
        width: of the hidden states.
        cutoffs: first word of every cluster but the first, increasing, below `vocab_size`. Empty: one cluster.
        div_val: how many times narrower the vectors of each cluster are than those of the one before. 1: all have the
            full width, and there are no projections.
        init_std: standard deviation of the normal initialisation. None: 1/√width for the tables and 1/√columns for the
            projections, with which logits start with variance 1 at any width.
        embedding_scale: factor of the embeddings. None: √width, as published.

    Shapes:
        Tokens (...) in int64, hidden states (..., width).

    Raises:
        ValueError: if the sizes do not fit each other.

    References:
        Grave et al., "Efficient softmax approximation for GPUs", 2017, arXiv:1609.04309.
        Baevski and Auli, "Adaptive input representations for neural language modeling", 2019, arXiv:1809.10853.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        cutoffs: Sequence[int] = (),
        div_val: int = 1,
        init_std: float | None = 0.01,
        embedding_scale: float | None = None,
    ) -> None:
        super().__init__()
        sizes(vocab_size=vocab_size, width=width, div_val=div_val)
        several_sizes(0, fewest=0, cutoffs=cutoffs)
        _check_clusters(vocab_size, width, cutoffs, div_val)
        if init_std is not None:
            above(0, "For one that fits the width pass `net.init_std=None`.", init_std=init_std)
        if embedding_scale is not None:
            above(0, "For √width pass `net.embedding_scale=None`.", embedding_scale=embedding_scale)
        self.embedding_scale = math.sqrt(width) if embedding_scale is None else embedding_scale
        self.vocab_size = vocab_size
        self.width = width
        self.edges = (0, *cutoffs, vocab_size)
        widths = [width // div_val**i for i in range(len(cutoffs) + 1)]
        self.tables = nn.ParameterList(
            torch.empty(stop - start, columns)
            for (start, stop), columns in zip(pairwise(self.edges), widths, strict=True)
        )
        self.projections = nn.ParameterList(torch.empty(width, columns) for columns in widths if div_val > 1)
        # The head's vectors leave through a projection of their own.
        self.head_projection = nn.Parameter(torch.empty(width, width)) if div_val > 1 else None
        self.clusters = nn.Parameter(torch.empty(len(cutoffs), width)) if cutoffs else None
        self.biases = nn.ParameterList(torch.zeros(len(table)) for table in self.tables)
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoffs))) if cutoffs else None
        self._initialise(init_std)

    def _initialise(self, std: float | None) -> None:
        for name, parameter in self.named_parameters():
            if "bias" not in name:
                columns = parameter.shape[1] if "projection" in name else self.width
                normal_(parameter, std, columns)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the scaled P E[token], (..., width).

        Raises:
            ValueError: if a token is not a word, where the tokens are on the CPU.
        """
        if tokens.device.type == "meta" or torch.compiler.is_exporting():
            return self._embed_everywhere(tokens)
        flat = self._checked(tokens.flatten())
        rows = self._rows(self._cluster(flat))
        vectors = [
            self._project_in(i, F.embedding(flat[row] - self.edges[i], self.tables[i])) for i, row in enumerate(rows)
        ]
        order = torch.cat(rows).argsort()
        return self.embedding_scale * torch.cat(vectors)[order].unflatten(0, tokens.shape)

    def _embed_everywhere(self, tokens: Tensor) -> Tensor:
        """Return the same without sorting the tokens by cluster, whose numbers a graph cannot depend on."""
        cluster = self._cluster(tokens)[..., None]
        total = self.tables[0].new_zeros(*tokens.shape, self.width)
        for i, table in enumerate(self.tables):
            place = (tokens - self.edges[i]).clamp(0, table.shape[0] - 1)
            total = torch.where(cluster == i, self._project_in(i, F.embedding(place, table)), total)
        return self.embedding_scale * total

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return −log p(target) in nats, in the order of the targets; a cluster's logits are only of its own targets.

        Raises:
            ValueError: if a target is not a word, where the targets are on the CPU.
        """
        flat, hidden = self._checked(targets.flatten()), hidden.reshape(-1, self.width)
        cluster = self._cluster(flat)
        in_head = torch.where(cluster == 0, flat, self.edges[1] + cluster - 1)
        nll = F.cross_entropy(self._head(hidden), in_head, reduction="none")
        for i, row in enumerate(self._rows(cluster)[1:], start=1):
            tail = F.cross_entropy(self._tail(i, hidden[row]), flat[row] - self.edges[i], reduction="none")
            nll = nll.index_add(0, row, tail)
        return nll.view(targets.shape)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the logarithm of the probability of every word, (..., vocab_size)."""
        head = self._head(hidden).log_softmax(dim=-1)
        first = self.edges[1]
        tails = [
            self._tail(i, hidden).log_softmax(dim=-1) + head[..., first + i - 1, None]
            for i in range(1, len(self.tables))
        ]
        return torch.cat([head[..., :first], *tails], dim=-1)

    def _checked(self, tokens: Tensor) -> Tensor:
        # On a GPU this would wait for the device, whose own assertion then has to do.
        if tokens.device.type == "cpu" and len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise ValueError(
                f"words must be from 0 to vocab_size − 1 = {self.vocab_size - 1}, got {tokens.min()} to "
                f"{tokens.max()}. Make the model with the `vocab_size` of the data."
            )
        return tokens

    def _cluster(self, tokens: Tensor) -> Tensor:
        """Return the cluster of each token; what is not a word counts to the first or last one."""
        cluster = torch.zeros_like(tokens)
        for start in self.edges[1:-1]:
            cluster += tokens >= start
        return cluster

    def _rows(self, cluster: Tensor) -> tuple[Tensor, ...]:
        """Return where each cluster's tokens are; the one place that waits for a GPU, where there are several."""
        if len(self.tables) == 1:
            return (torch.arange(len(cluster), device=cluster.device),)
        counts = torch.bincount(cluster, minlength=len(self.tables)).tolist()
        return cluster.argsort(stable=True).split(counts)

    def _project_in(self, i: int, vectors: Tensor) -> Tensor:
        return F.linear(vectors, self.projections[i]) if len(self.projections) else vectors

    def _head(self, hidden: Tensor) -> Tensor:
        """Return the logits of the first cluster's words and of the other clusters."""
        if self.head_projection is not None:
            hidden = hidden @ self.head_projection
        weight, bias = self.tables[0], self.biases[0]
        if self.clusters is not None and self.cluster_bias is not None:
            weight, bias = torch.cat([weight, self.clusters]), torch.cat([bias, self.cluster_bias])
        return F.linear(hidden, weight, bias)

    def _tail(self, i: int, hidden: Tensor) -> Tensor:
        """Return the logits of the words of a cluster, given that the word is one of them."""
        if len(self.projections):
            hidden = hidden @ self.projections[i]
        return F.linear(hidden, self.tables[i], self.biases[i])


def normal_(tensor: Tensor, std: float | None, fan_in: int) -> None:
    """Draw from N(0, std²), or with a standard deviation of 1/√fan_in where `std` is None."""
    nn.init.normal_(tensor, std=1 / math.sqrt(fan_in) if std is None else std)


def _check_clusters(vocab_size: int, width: int, cutoffs: Sequence[int], div_val: int) -> None:
    edges = (0, *cutoffs, vocab_size)
    if any(start >= stop for start, stop in pairwise(edges)):
        raise ValueError(
            f"`cutoffs` must be increasing, above 0 and below `vocab_size`, got {list(cutoffs)} for {vocab_size}. "
            "For one cluster leave them empty: []."
        )
    if width < div_val ** len(cutoffs):
        raise ValueError(
            f"`width` must be `div_val` to the power of the number of `cutoffs` or more, for the last cluster's "
            f"vectors to have a column; got {width} < {div_val}^{len(cutoffs)}."
        )
