"""The deep equilibrium transformer, a language model that remembers the segments before."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import one_of, sizes, whole, within
from deq_lightning.models.base import Equilibrium, ImplicitModel, Start
from deq_lightning.models.language.adaptive import AdaptiveVocabulary, normal_
from deq_lightning.models.language.attention import AttentionInjection, RelativeAttention
from deq_lightning.models.layers.frozen import VariationalDropout, WeightNormLinear
from deq_lightning.solvers import Solver

Norm = Literal["post", "pre"]
OutputDropout = Literal["token", "feature"]


class Memory(NamedTuple):
    """What later segments of the same streams attend to, without a graph.

    The injections stay as they were computed, with the weights and the dropout of their time.
    """

    z: Tensor  # (streams, length, width) equilibrium states
    u: Tensor  # (streams, length, 3·width) injections


class Segment(NamedTuple):
    """The next words of several streams of text."""

    tokens: Tensor  # (streams, length) int64
    memory: Memory | None = None  # of the segments before; None at the start of the streams


class LanguageOutput(NamedTuple):
    """What the network makes of a segment."""

    hidden: Tensor  # (streams, length, width) for the softmax, after the output dropout
    memory: Memory  # of this segment and those before, the last `memory_length` positions, before the output dropout


class DEQTransformer(ImplicitModel):
    r"""Transformer of infinite depth with tied weights: one layer of attention and feed-forward, solved.

    The unknown are the states of a segment's positions; they attend to each other and to the equilibrium states of the
    segments before. The embedded words enter queries, keys and values. The defaults are the published model for
    WikiText-103 with its vocabulary of 267,735 words: 97,691,888 parameters. The published code counts 97,851,488,
    because it has the tied projections of the three clusters of rare words twice (see `AdaptiveVocabulary`).

    With `norm` "post" the layer is LN(x + FFN(x)), x = LN(z + attention(z)). With "pre" it is x + FFN(x), x = LN(z +
    attention(LN(z))): no path leads from z to the output but through a norm, so that the map is bounded and has a fixed
    point, unlike the usual pre-norm layer. The norms have no parameters.

    Args:
        vocab_size: number of words, which are in order of decreasing frequency; that of the data.
        width: of the states and of the embedding of frequent words; even.
        heads: of attention; divides `width`.
        inner_width: of the feed-forward part.
        cutoffs: first word of every cluster but the first, increasing, below `vocab_size`. Empty: an ordinary softmax.
        div_val: how many times narrower the vectors of each cluster are than those of the one before.
        memory_length: positions before the segment that are attended to, 0 or more. Another value in evaluation is
            set as an attribute.
        norm: "post" or "pre", see above.
        dropout: probability to drop a feature of embeddings, position codes, attention, inner and outer feed-forward,
            at all positions alike and with one mask for the whole solve; and of the output dropout. In [0, 1).
        attention_dropout: probability to drop an attention probability, with one mask for the whole solve; in [0, 1).
        output_dropout: whether the dropout before the softmax drops whole tokens, as the published code does, or
            features.
        init_std: standard deviation of the normal initialisation of embeddings, injection and attention biases. None:
            1/√fan-in, without which models of small width hardly learn. The weight-normed layers keep PyTorch's default
            initialisation, in the published code as well.
        embedding_scale: factor of the embeddings, above 0. None: √width, as published. With `init_std` None take 1:
            with √width a small model, trained with `NPG`, learned faster in the first epochs, but its spectral radius
            passed 1 and it ended worse.
        solver: finds the equilibrium. None: `Anderson()`.

    Shapes:
        A `Segment` of tokens (streams, length) to a `LanguageOutput`. The state is (streams, length, width).

    Raises:
        ValueError: if the sizes do not fit each other.

    References:
        Bai, Kolter and Koltun, "Deep equilibrium models", NeurIPS 2019, arXiv:1909.01377.
        Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization", 2021, arXiv:2106.14342.
    """

    def __init__(
        self,
        vocab_size: int = 267_735,
        width: int = 700,
        heads: int = 10,
        inner_width: int = 48000,
        cutoffs: Sequence[int] = (20000, 40000, 200000),
        div_val: int = 4,
        memory_length: int = 150,
        norm: Norm = "post",
        dropout: float = 0.05,
        attention_dropout: float = 0.0,
        output_dropout: OutputDropout = "token",
        init_std: float | None = 0.01,
        embedding_scale: float | None = None,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(solver)
        _check_sizes(width, heads, inner_width, memory_length)
        one_of(get_args(Norm), norm=norm)
        one_of(get_args(OutputDropout), output_dropout=output_dropout)
        within("[0, 1)", attention_dropout=attention_dropout)
        self.vocab_size = vocab_size
        self.width = width
        self.memory_length = memory_length
        self.pre_norm = norm == "pre"
        self.vocabulary = AdaptiveVocabulary(vocab_size, width, cutoffs, div_val, init_std, embedding_scale)
        self.embedding_dropout = VariationalDropout(dropout, shared=(1,))
        self.injection = nn.Linear(width, 3 * width)
        self.attention = RelativeAttention(width, heads, attention_dropout, position_dropout=dropout)
        self.attended_dropout = VariationalDropout(dropout, shared=(1,))
        self.feed_forward = nn.Sequential(
            WeightNormLinear(width, inner_width),
            nn.ReLU(inplace=True),
            VariationalDropout(dropout, shared=(1,)),
            WeightNormLinear(inner_width, width),
            VariationalDropout(dropout, shared=(1,)),
        )
        self.output_dropout = VariationalDropout(dropout, shared=(2,) if output_dropout == "token" else (1,))
        self._initialise(init_std)

    def _initialise(self, std: float | None) -> None:
        normal_(self.injection.weight, std, self.width)
        for bias in (self.attention.content_bias, self.attention.position_bias):
            normal_(bias, std, bias.shape[-1])
        for layer in (self.injection, self.attention.out, *self.feed_forward):
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def inject(self, x: Segment) -> AttentionInjection:
        """Return the injection of the words, the memory's keys and values, and the positions.

        Raises:
            ValueError: if the memory is that of another number of streams, or if a token on the CPU is not a word.
        """
        streams, length = x.tokens.shape
        memory = x.memory or Memory(self.zeros((streams, 0, self.width)), self.zeros((streams, 0, 3 * self.width)))
        if memory.z.shape[0] != streams:
            raise ValueError(
                f"the memory must be of as many streams as the tokens, got {len(memory.z)} for {streams}. Leave it out "
                "where other streams start."
            )
        u = self.injection(self.embedding_dropout(self.vocabulary.embed(x.tokens)))
        remembered = self.attention.memorise(self._before_attention(memory.z), memory.u)
        return AttentionInjection(u, remembered, self.attention.positions(length, memory.z.shape[1]))

    def initial_state(self, u: AttentionInjection) -> Tensor:
        """Return zeros."""
        return self.zeros((*u.qkv.shape[:2], self.width))

    def cell(self, z: Tensor, u: AttentionInjection) -> Tensor:
        """Return the layer at `z`."""
        attended = self.attended_dropout(self.attention(self._before_attention(z), u))
        x = normalised(z + attended)
        y = x + self.feed_forward(x)
        return y if self.pre_norm else normalised(y)

    def readout(self, z: Tensor) -> Tensor:
        """Return the states after dropout, for `vocabulary`."""
        return self.output_dropout(z)

    def forward(self, x: Segment, start: Start | None = None) -> tuple[LanguageOutput, list[Equilibrium]]:
        """Return the hidden states with the memory for the next segment, and the equilibrium."""
        u = self.inject(x)
        equilibrium = self.equilibrium(u, start)
        z = equilibrium.z
        assert isinstance(z, Tensor)
        return LanguageOutput(self.readout(z), latest(x.memory, Memory(z, u.qkv), self.memory_length)), [equilibrium]

    def _before_attention(self, z: Tensor) -> Tensor:
        return normalised(z) if self.pre_norm else z


def latest(memory: Memory | None, new: Memory, limit: int) -> Memory:
    """Return the last positions of both, without a graph.

    Args:
        memory: of the segments before.
        new: of this segment.
        limit: how many positions at most.
    """
    length = new.z.shape[1]
    kept = Memory(*(part[:, max(length - limit, 0) :].detach() for part in new))
    if memory is None:
        return kept
    start = max(memory.z.shape[1] - max(limit - length, 0), 0)
    return Memory(*(torch.cat([old[:, start:], part], dim=1) for old, part in zip(memory, kept, strict=True)))


def normalised(x: Tensor) -> Tensor:
    """Return each position with mean 0 and variance 1."""
    return F.layer_norm(x, x.shape[-1:])


def _check_sizes(width: int, heads: int, inner_width: int, memory_length: int) -> None:
    sizes(width=width, heads=heads, inner_width=inner_width)
    whole(0, memory_length=memory_length)
    if width % heads:
        raise ValueError(f"`heads` must divide `width`, got {heads} for {width}.")
    if width % 2:
        raise ValueError(f"`width` must be even, one half for sines and one for cosines of positions, got {width}.")
