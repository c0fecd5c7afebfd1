"""An equilibrium of some samples of a batch, while the others rest."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from deq_lightning.models.cell_map import CellMap, restricted
from deq_lightning.models.starts import Equilibrium
from deq_lightning.solvers import FixedPointMap, Solution, Status
from deq_lightning.state import State, parts


class PartialMap:
    """The map of a batch that moves some of its samples and takes all others to where they rest, as a constant does.

    Args:
        f: the map of the samples that move.
        rows: their places in the batch.
        rest: a state of the whole batch, which says where the others are.
    """

    partition = None

    def __init__(self, f: FixedPointMap, rows: Tensor, rest: State) -> None:
        self.f = f
        self.rows = rows
        self.rest = rest

    def __call__(self, z: State) -> State:
        """Evaluate the map."""
        if len(self.rows) == 0:
            return self.rest
        return among(self.rest, self.rows, self.f(tree_map(lambda part: part[self.rows], z)))


def among(rest: State, rows: Tensor, some: State) -> State:
    """Return `rest` with `some` in the places `rows`."""
    return tree_map(lambda part, new: part.index_copy(0, rows, new.to(part)), rest, some)


def injection_of(u: Any, rows: Tensor, batch: int) -> Any:
    """Return the injection of some samples of a batch.

    Raises:
        UnknownContainerError: if there is anything in `u` that may hide tensors.
    """
    whole = CellMap(lambda z, u: z, u, separable=True)
    whole.batch = batch
    return restricted(u, rows, whole.batched)


def embedded(one: Equilibrium, rows: Tensor, rest: State) -> Equilibrium:
    """Return the equilibrium of a whole batch of which `rows` were solved; the others are at rest after 0 steps.

    Args:
        one: the equilibrium of these rows alone.
        rows: their places in the batch.
        rest: where the others are.
    """
    solution = None if one.solution is None else _among(solution_at(rest), rows, one.solution)
    return Equilibrium(PartialMap(one.f, rows, rest), among(rest, rows, one.z), solution)


def resting(rest: State, rows: Tensor, solved: bool) -> Equilibrium:
    """Return the equilibrium of a batch that rests as a whole.

    Args:
        rest: where.
        rows: no places.
        solved: whether it has a solution. Not in the unrolled stage, where nothing is solved.
    """
    return Equilibrium(PartialMap(lambda z: z, rows, rest), rest, solution_at(rest) if solved else None)


def solution_at(rest: State) -> Solution:
    """Return the solution of a map that leaves every sample where it is: known without an evaluation."""
    first = parts(rest)[0]
    steps = torch.zeros(len(first), dtype=torch.long, device=first.device)
    return Solution(tree_map(Tensor.detach, rest), steps.to(first.real.dtype), steps, steps + Status.converged, 0)


def _among(still: Solution, rows: Tensor, some: Solution) -> Solution:
    return replace(
        some,
        z=among(still.z, rows, some.z),
        residual=among(still.residual.to(some.residual), rows, some.residual),
        steps=among(still.steps, rows, some.steps),
        status=among(still.status, rows, some.status),
    )
