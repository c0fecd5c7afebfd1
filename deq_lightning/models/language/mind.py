"""MIND for text."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from deq_lightning.configured import one_of, several_sizes, sizes, within
from deq_lightning.models.base import Equilibrium, Network
from deq_lightning.models.language.adaptive import AdaptiveVocabulary
from deq_lightning.models.language.sublayers import (
    Entering,
    FixedPointAttention,
    FixedPointFeedForward,
    Part,
    distances,
)
from deq_lightning.models.language.transformer import LanguageOutput, Memory, Segment, latest
from deq_lightning.models.layers.frozen import VariationalDropout
from deq_lightning.models.layers.selection import Flops, Introspection, Selection, chosen
from deq_lightning.solvers import FixedPointIteration, Solver

Variant = Literal["learned", "all", "none"]


class Thought(NamedTuple):
    """What a network with fixed points to choose from makes of a segment."""

    output: LanguageOutput
    equilibria: list[Equilibrium]  # of every fixed point; streams for which it is off are at rest, after 0 steps
    choice: Tensor  # (streams, fixed points) 1 where it is on, else 0, with the gradient of a relaxed choice


class MINDTransformer(Network):
    r"""A pre-norm transformer whose attention and feed-forward parts a second network turns into fixed points or not.

    Every part starts from its value in an ordinary pass. Where it is off that is its value; where it is on it solves

    - attention: :math:`A = \mathrm{softmax}((Q + f(A)) K^\top / \sqrt d + b)\,V` in every head,
    - feed-forward: :math:`F = W_2\,\mathrm{relu}(W_1 x + b_1 + g(F)) + b_2`,

    with :math:`f(A) = W_f\,\nu(A)`, :math:`g(F) = W_g\,\nu(F)` and :math:`\nu(z) = z / \sqrt{1 + \mathrm{mean}(z^2)}`.
    All rows of :math:`W_f` and :math:`W_g` have the length `scale`: the maps are contractions at the start, and with
    any other weights bounded, so that they have a fixed point. The paper prints :math:`Q K^\top + f(A)`, where A has a
    column for each feature and :math:`Q K^\top` one for each position; here the state enters through the queries, as
    :math:`f(A) K^\top`, which needs no fixed length.

    The bias b says how far back a key is, and excludes later ones.

    What entered each part at the last `memory_length` positions is remembered: attention reaches back to it, and the
    introspection network sees its means over the positions, and is kept from changing it. So each part of each stream
    is on or off for a whole segment because of what came before, and no word depends on a later one; the paper's means
    over the segment itself would tell the first word about the last. Where a stream starts the means are zeros. In
    training all fixed points are solved, because the gradient of a choice needs to know both outcomes; in evaluation
    one is solved for those streams alone for which it is on.

    The defaults are the published sizes, with the vocabulary of WikiText-2. No code was published.

    Args:
        vocab_size: number of words, which are in order of decreasing frequency; that of the data.
        width: of the states and of the embedding of frequent words.
        heads: of attention; divides `width`.
        inner_width: of the feed-forward parts.
        layers: of attention and feed-forward, which are two fixed points each.
        cutoffs: first word of every cluster but the first, increasing, below `vocab_size`. Empty: an ordinary softmax.
        div_val: how many times narrower the vectors of each cluster are than those of the one before.
        memory_length: positions before the segment that are attended to and seen by introspection, 1 or more.
        variant: who chooses. `learned`: the introspection network. `all`: every part is on. `none`: there are no fixed
            points, and this is an ordinary transformer.
        selection: whether each part is chosen by itself (`independent`), or one or none of them (`categorical`, as the
            paper's Eq. 6).
        introspection_widths: of the hidden layers of the introspection network.
        scale: length of those rows, in (0, 1): the smaller, the closer the steps are to contractions.
        dropout: probability to drop a feature of embeddings, parts and output, at all positions alike, in [0, 1).
        solver: finds the equilibria. None: plain iteration, at most 30 steps in training and 100 in evaluation.

    Attributes:
        temperature: of the relaxed choice in training, above 0.

    Shapes:
        A `Segment` of tokens (streams, length) to a `LanguageOutput`, whose memory has in `z` what entered the
        attention of all layers, in `u` what entered their feed-forward parts, (streams, memory, layers·width) each.

    Raises:
        ValueError: if an argument is out of its range, or the sizes do not fit each other.

    References:
        Mathur, Pearlmutter and Plis, "MIND over body: adaptive thinking using dynamic computation", ICLR 2025.
    """

    temperature = 1.0

    def __init__(
        self,
        vocab_size: int = 33_278,
        width: int = 512,
        heads: int = 8,
        inner_width: int = 2048,
        layers: int = 6,
        cutoffs: Sequence[int] = (),
        div_val: int = 1,
        memory_length: int = 120,
        variant: Variant = "learned",
        selection: Selection = "independent",
        introspection_widths: Sequence[int] = (512, 128),
        scale: float = 0.9,
        dropout: float = 0.1,
        solver: Solver | None = None,
    ) -> None:
        super().__init__()
        sizes(width=width, heads=heads, inner_width=inner_width, layers=layers, memory_length=memory_length)
        several_sizes(fewest=0, introspection_widths=introspection_widths)
        one_of(get_args(Variant), variant=variant)
        one_of(get_args(Selection), selection=selection)
        within("(0, 1)", scale=scale)
        if width % heads:
            raise ValueError(f"`heads` must divide `width`, got {heads} for {width}.")
        self.vocab_size, self.width, self.heads, self.inner_width = vocab_size, width, heads, inner_width
        self.memory_length, self.selection, self.iterated = memory_length, selection, variant != "none"
        self.vocabulary = AdaptiveVocabulary(vocab_size, width, cutoffs, div_val, init_std=None)
        self.dropout = VariationalDropout(dropout, shared=(1,))
        solver = FixedPointIteration(max_steps=30, eval_max_steps=100) if solver is None else solver
        parts: list[Part] = []
        for _ in range(layers):
            parts.append(FixedPointAttention(width, heads, scale, self.iterated, solver))
            parts.append(FixedPointFeedForward(width, inner_width, scale, self.iterated, solver))
        self.layers = nn.ModuleList(parts)
        if variant == "learned":
            self.introspection = Introspection(len(parts) * width, len(parts), introspection_widths)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Segment) -> tuple[LanguageOutput, list[Equilibrium]]:
        """Return the hidden states with the memory for the next segment, and the equilibria of the fixed points."""
        thought = self.think(x)
        return thought.output, thought.equilibria

    def think(self, x: Segment, choice: Tensor | None = None) -> Thought:
        """Return the hidden states with the memory, the equilibria, and which parts were on.

        Args:
            x: the words, and the memory of those before.
            choice: (streams, parts) which parts shall be on, 1 or 0. None: the variant chooses.
        """
        h = self.dropout(self.vocabulary.embed(x.tokens))
        memory = x.memory or Memory(*(h.new_zeros(len(h), 0, len(self.layers) // 2 * self.width) for _ in range(2)))
        choice = self.choose(memory) if choice is None else choice.to(h)
        bias = distances(self.heads, h.shape[1], memory.z.shape[1], like=h)
        entered: list[Tensor] = []
        equilibria: list[Equilibrium] = []
        for place, (layer, before) in enumerate(zip(self.layers, self._by_part(memory), strict=True)):
            entered.append(h)
            on = choice[:, place] if self.iterated else None
            value, solved = _value(layer, Entering(h, before, bias), on)
            equilibria += solved
            h = h + self.dropout(value)
        new = Memory(torch.cat(entered[::2], dim=2), torch.cat(entered[1::2], dim=2))
        hidden = self.dropout(self.norm(h))
        return Thought(LanguageOutput(hidden, latest(x.memory, new, self.memory_length)), equilibria, choice)

    def choose(self, memory: Memory) -> Tensor:
        """Return (streams, parts) which parts are on, from what entered them at the positions before."""
        if not hasattr(self, "introspection"):
            return memory.z.new_ones(len(memory.z), len(self.layers) if self.iterated else 0)
        means = torch.cat(memory, dim=2).sum(dim=1) / max(memory.z.shape[1], 1)
        return chosen(self.introspection(means), self.selection, self.temperature, self.training).to(memory.z)

    def _by_part(self, memory: Memory) -> list[Tensor]:
        """Return what entered each part, in their order."""
        z, u = (entered.split(self.width, dim=2) for entered in memory)
        return [part for pair in zip(z, u, strict=True) for part in pair]

    def flops(self, length: int, memory: int) -> Flops:
        """Return what a segment of `length` after a memory costs a stream, without embedding, softmax and choice."""
        d, layers = self.width, len(self.layers) // 2
        attention, feed_forward = 4 * length * (length + memory) * d, 4 * length * d * self.inner_width
        projections = 4 * length * d * d + 4 * (length + memory) * d * d
        steps = layers * [2 * length * d * d + attention, feed_forward] if self.iterated else []
        return Flops(layers * (projections + attention + feed_forward), steps)


def _value(part: Any, x: Entering, on: Tensor | None) -> tuple[Tensor, list[Equilibrium]]:
    """Return the value of a part, and its equilibrium.

    Args:
        part: attention or feed-forward.
        x: what enters.
        on: (streams,) 1 where it is iterated, else 0. None: for no stream, ever.
    """
    u = part.inject(x)
    if on is None:
        return part.readout(part.initial_state(u)), []
    z, one = part.by_choice(u, on)
    return part.readout(z), [one]
