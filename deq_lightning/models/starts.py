"""Where a solve may start, besides the model's own initial state."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from deq_lightning.solvers import FixedPointMap, Solution
from deq_lightning.state import State, parts, shapes


class Equilibrium(NamedTuple):
    """One equilibrium of a forward pass, for penalties, logging and audits.

    `f` stays the map that was solved, with its dropout masks and weights; `solution` is None if nothing was solved
    (the unrolled stage).
    """

    f: FixedPointMap
    z: State
    solution: Solution | None


Start = State | Solution | Equilibrium


def state_of(start: Any, like: State) -> State:
    """Return the state that a start holds, in the dtypes of `like`.

    What an earlier call has found starts without its graph, a state as it was given.

    Args:
        start: a state, or what holds one.
        like: the model's own initial state.

    Raises:
        ValueError: if its structure or shapes are not those of `like`.
    """
    earlier = isinstance(start, Solution | Equilibrium)
    if isinstance(start, Equilibrium) and start.solution is not None and shapes(start.solution.z) == shapes(like):
        start = start.solution  # this point met the tolerance; the steps of a strategy may lead away from it
    state = start.z if earlier else start
    if shapes(state) != shapes(like):
        raise ValueError(
            f"`start` must be a state of this model for this input, {shapes(like)}, or a `Solution` or `Equilibrium` "
            f"that holds one, got {shapes(state)}."
        )

    def usable(part: Tensor, model: Tensor) -> Tensor:
        part = part.detach() if earlier else part
        part = part.clone() if part.is_inference() and not torch.is_inference_mode_enabled() else part
        return part.to(model)

    return tree_map(usable, state, like)


def partly_random(z0: State, share: float, std: float) -> State:
    """Return a start in which some samples have normal noise in place of their own.

    Args:
        z0: the start.
        share: probability of a sample to start at random, in [0, 1].
        std: standard deviation of the noise.
    """
    first = parts(z0)[0]
    chosen = torch.rand(first.shape[0], device=first.device) < share

    def mixed(part: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (part.ndim - 1)), std * torch.randn_like(part), part)

    return tree_map(mixed, z0)
