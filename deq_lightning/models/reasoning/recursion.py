"""Recursive reasoners, HRM, TRM and EqR, as one equilibrium model: the cell is a cycle of their recursion."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import at_least, one_of, whole, within
from deq_lightning.models.base import ImplicitModel
from deq_lightning.models.reasoning.blocks import Mixing, Reasoning, lecun_normal_, linear
from deq_lightning.solvers import FixedPointIteration, Solver

Latents = tuple[Tensor, Tensor]  # z_H, the answer, and z_L, the scratchpad
Differentiated = Literal["all", "last"]
HALT_BIAS = -5.0  # in the beginning nothing is taken for solved


class RecursiveReasoner(ImplicitModel):
    r"""Labels every position of a puzzle given as tokens, by a small network that is applied again and again.

    The state is a pair :math:`(z_H, z_L)` of (batch, positions, width). One evaluation of the cell is one cycle:
    `inner_cycles` times :math:`z_L \leftarrow R(z_L, z_H + u)`, then :math:`z_H \leftarrow R(z_H, z_L)`, where u embeds
    the tokens and R(h, i) are `layers` blocks on h + i. The published gradients are those of `JFB` on this cell, after
    cycles without a graph: `solver=FixedPointIteration(max_steps=T - 1, rtol=0, keep="last")` for T cycles.

    Published sizes: TRM for Sudoku (`width=512, positions=81, prefix=16, inner_cycles=6`, three cycles, `mixing`
    "positions" or "attention"), HRM (`networks=2, layers=4, inner_cycles=2, prefix=1, differentiated="last"`, two
    cycles), EqR (TRM without a prefix, with `random_start=1` and a damped, noisy solver).

    (batch, positions) of token numbers to logits (batch, num_classes, positions).

    Args:
        vocab_size: tokens there are; by default those of Sudoku, a blank and nine digits.
        num_classes: classes of a position, 2 or more.
        positions: tokens of a puzzle; with attention other numbers may follow later.
        width: numbers per position of a latent.
        layers: blocks of the network, or of each of two.
        inner_cycles: updates of z_L in a cycle, 1 or more.
        mixing: what lets positions see each other: `positions`, a gated network over all of them, whose number is then
            fixed, or rotary `attention`.
        heads: of the attention; they divide `width`, and leave an even number to each.
        expansion: inner width of the gated networks relative to their input, before a factor of 2/3.
        multiple: inner widths are rounded up to a multiple of this.
        networks: 1, or 2 for one each for z_L and z_H.
        prefix: empty positions before those of the puzzle, as there published for a puzzle's embedding.
        differentiated: which updates of a cycle are differentiated, `all` or the `last` of z_L and of z_H.
        init_gain: scale of the last matrix of every gated network at the start. Below 1 the first thing that is
            learnt is to copy what is given.
        random_start: share of the samples that start at random in training, in [0, 1].
        start_std: standard deviation of such a start.
        solver: finds the equilibrium. None: two cycles, of which the last state is taken.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Wang et al., "Hierarchical reasoning model", 2025, arXiv:2506.21734.
        Jolicoeur-Martineau, "Less is more: recursive reasoning with tiny networks", 2025, arXiv:2510.04871.
        Huang, Geng and Kolter, "Equilibrium reasoners", 2026, arXiv:2605.21488.
    """

    start: Tensor

    def __init__(
        self,
        vocab_size: int = 10,
        num_classes: int = 9,
        positions: int = 81,
        width: int = 512,
        layers: int = 2,
        inner_cycles: int = 6,
        mixing: Mixing = "positions",
        heads: int = 8,
        expansion: float = 4.0,
        multiple: int = 256,
        networks: Literal[1, 2] = 1,
        prefix: int = 0,
        differentiated: Differentiated = "all",
        init_gain: float = 1.0,
        random_start: float = 0.0,
        start_std: float = 1.0,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(FixedPointIteration(max_steps=2, rtol=0.0, keep="last") if solver is None else solver)
        whole(1, vocab_size=vocab_size, positions=positions, width=width, layers=layers, inner_cycles=inner_cycles)
        whole(2, num_classes=num_classes)
        whole(0, prefix=prefix)
        one_of(get_args(Mixing), mixing=mixing)
        one_of((1, 2), networks=networks)
        one_of(get_args(Differentiated), differentiated=differentiated)
        within("[0, 1]", random_start=random_start)
        at_least(0, start_std=start_std)
        self.vocab_size, self.num_classes, self.positions = vocab_size, num_classes, positions
        self.width, self.prefix, self.inner_cycles = width, prefix, inner_cycles
        self.mixing, self.differentiated = mixing, differentiated
        self.random_start, self.start_std = random_start, start_std
        length = positions + prefix if mixing == "positions" else None
        self.low = Reasoning(width, layers, heads, length, expansion, multiple, init_gain)
        self.high = (
            self.low if networks == 1 else Reasoning(width, layers, heads, length, expansion, multiple, init_gain)
        )
        self.embedding = nn.Embedding(vocab_size, width)
        lecun_normal_(self.embedding.weight, width)
        self.head = linear(width, num_classes)
        self.halt = nn.Linear(width, 2)
        nn.init.zeros_(self.halt.weight)
        nn.init.constant_(self.halt.bias, HALT_BIAS)
        # One vector for each latent, the same at every position and for ever.
        self.register_buffer("start", nn.init.trunc_normal_(torch.empty(2, width), std=1, a=-2, b=2))

    def inject(self, x: Tensor) -> Tensor:
        """Return the embedded tokens, behind an empty prefix."""
        if x.ndim != 2 or x.is_floating_point() or (self.mixing == "positions" and x.shape[1] != self.positions):
            raise ValueError(
                f"The input must be tokens, (batch, {self.positions}), got {tuple(x.shape)} of {x.dtype}. "
                "Set `positions`, or `mixing=attention` for several lengths."
            )
        return F.pad(self.embedding(x) * math.sqrt(self.width), (0, 0, self.prefix, 0))

    def initial_state(self, u: Tensor) -> Latents:
        """Return the fixed start of both latents at every position."""
        high, low = (vector.expand_as(u).contiguous() for vector in self.start.to(u.dtype))
        return high, low

    def cell(self, z: Latents, u: Tensor) -> Latents:
        """Return the state after one cycle."""
        high, low = z
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiated == "all"):
            for _ in range(self.inner_cycles - 1):
                low = self.low(low, high + u)
        low = self.low(low, high + u)
        return self.high(high, low), low

    def readout(self, z: Latents) -> Tensor:
        """Return the logits of every position of the puzzle."""
        return self.head(z[0][:, self.prefix :]).transpose(1, 2)

    def halting(self, z: Latents) -> Tensor:
        """Return (batch,) logits of the puzzle being solved, read off the first position of z_H."""
        return self.halt(z[0][:, 0])[:, 0]
