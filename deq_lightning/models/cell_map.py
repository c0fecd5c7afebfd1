"""The map that is solved in one forward pass, and how it is restricted to some of its samples."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from deq_lightning.solvers import FixedPointMap, Partition
from deq_lightning.state import State, pack, parts, unpack

PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device)


class Shared:
    """Base of containers in an injection that hold what all samples share, such as positions.

    A map that is restricted to some of the samples leaves them whole.
    """


class UnknownContainerError(TypeError):
    """An injection holds an object that may hide tensors; the message says which."""


class CellMap:
    """The map z ↦ cell(z, u) of one forward pass.

    Args:
        cell: the equilibrium module.
        u: the injection.
        separable: whether no sample's value depends on which others are in the batch.
        partition: the samples, where they are not the rows of dimension 0.
        by_sample: of every tensor in `u`, whether its dimension 0 is the batch. None: where that has its length.
    """

    watch: Callable[[Callable[[], State]], State] | None = None  # runs the evaluations of a solve that is watched

    def __init__(
        self,
        cell: Callable[[Any, Any], Any],
        u: Any,
        separable: bool,
        partition: Partition | None = None,
        by_sample: tuple[bool, ...] | None = None,
    ) -> None:
        self.cell = cell
        self.u = u
        self.separable = separable
        self.partition = partition
        self.by_sample = by_sample
        self.batch: int | None = None

    def __call__(self, z: State) -> State:
        """Evaluate the cell."""
        if self.separable and self.batch is None:
            self.batch = parts(z)[0].shape[0]
        if self.watch is None:
            return self.cell(z, self.u)
        return self.watch(lambda: self.cell(z, self.u))

    def subset(self, rows: Tensor) -> "CellMap | None":
        """Return the map of the samples `rows` (indices into the batch), or None if they cannot be separated."""
        if not self.separable:
            return None
        try:
            by_sample = self.batched
        except UnknownContainerError:
            return None
        return CellMap(self.cell, restricted(self.u, rows, by_sample), True, by_sample=by_sample)

    @property
    def batched(self) -> tuple[bool, ...]:
        """Of every tensor in `u`, whether its dimension 0 is the batch.

        Raises:
            UnknownContainerError: if there is anything in `u` that may hold more tensors.
        """
        if self.by_sample is None:
            found: list[Tensor] = []
            _map_tensors(found.append, self.u)
            self.by_sample = tuple(part.ndim > 0 and self.batch in (None, part.shape[0]) for part in found)
        return self.by_sample


class Together:
    """The map of samples that depend on each other as that of one sample: they are solved, and stop, together.

    Args:
        f: their map.
        z: a state of theirs, which gives structure, shapes and dtypes.
    """

    def __init__(self, f: FixedPointMap, z: State) -> None:
        self.f = f
        self.like = z
        count = parts(z)[0].shape[0]
        self.partition = Partition(torch.arange(count, device=parts(z)[0].device), count, together=True)

    def __call__(self, flat: Tensor) -> Tensor:
        """Evaluate the map at a (1, batch, dim) tensor."""
        return self.joined(self.f(self.parted(flat)))

    def joined(self, z: State) -> Tensor:
        """Return the state as a (1, batch, dim) tensor."""
        return pack(z)[None]

    def parted(self, flat: State) -> State:
        """Return the state that a (1, batch, dim) tensor holds."""
        assert isinstance(flat, Tensor)
        return unpack(flat[0], self.like)


def restricted(u: Any, rows: Tensor, by_sample: Sequence[bool]) -> Any:
    """Return an injection with the rows of the tensors for which `by_sample` holds, and the others whole."""
    chosen = iter(by_sample)
    return _map_tensors(lambda part: part[rows] if next(chosen) else part, u)


def _map_tensors(change: Callable[[Tensor], Any], u: Any) -> Any:
    """Return `u` with every tensor changed, but for those in `Shared`; PyTorch's containers and dataclasses are known.

    Raises:
        UnknownContainerError: if there is anything else that may hold tensors.
    """

    def leaf(part: Any) -> Any:
        if isinstance(part, Tensor):
            return change(part)
        if isinstance(part, (Shared, *PLAIN)):
            return part
        if not is_dataclass(part) or isinstance(part, type):
            raise UnknownContainerError(
                f"its injection holds a `{type(part).__name__}`; a tuple, a dict or a dataclass would be known"
            )
        changed = copy.copy(part)
        for field in fields(part):  # not `replace`, which would run the constructor
            object.__setattr__(changed, field.name, _map_tensors(change, getattr(part, field.name)))
        return changed

    return tree_map(leaf, u, is_leaf=lambda part: isinstance(part, Shared))
