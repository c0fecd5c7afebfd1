"""The state of an equilibrium: a tensor, or a pytree of tensors, whose dimension 0 is the batch.

Pytrees are what `torch.utils._pytree` knows: tuples, lists, dicts, named tuples, registered classes, and nests of them.
Here alone they are taken apart; solvers and gradients work on one real (batch, dim) tensor.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map

State = Any  # a tensor or a pytree of tensors

REGISTER = "A class of your own must be registered: `torch.utils._pytree.register_dataclass`."


def parts(state: State) -> tuple[Tensor, ...]:
    """Return the tensors of a state.

    Raises:
        ValueError: if they are not floating-point or complex tensors of one batch.
    """
    tensors = tuple(tree_leaves(state))
    if not tensors:
        raise ValueError("A state must hold one tensor or more, got none.")
    for part in tensors:
        if not isinstance(part, Tensor):
            raise ValueError(f"A state must be made of tensors, got `{type(part).__name__}`. {REGISTER}")
        if not (part.is_floating_point() or part.is_complex()):
            raise ValueError(f"A state must be floating-point or complex, got {part.dtype}. Use `.float()`.")
        if part.ndim == 0:
            raise ValueError("Dimension 0 of a state must be the batch, got a tensor without dimensions. Use `[None]`.")
        if part.shape[0] != tensors[0].shape[0]:
            raise ValueError(f"Dimension 0 of all tensors of a state must be the batch, got shapes {shapes(state)}.")
    return tensors


def rebuild(tensors: Iterable[Tensor], like: State) -> State:
    """Give tensors the structure of `like`."""
    return tree_flatten(like)[1].unflatten(tensors)


def shapes(state: object) -> object:
    """Describe the structure and shapes of a state, or of what should be one."""
    return tree_map(_shape, state)


def _shape(part: object) -> object:
    return list(part.shape) if isinstance(part, Tensor) else type(part).__name__


def pack(state: State) -> Tensor:
    """Flatten a state to one real (batch, dim) tensor in float32 or better, differentiably.

    Half precision is widened because residuals near a tolerance of 1e-3 are below its resolution.
    """
    return join(parts(state))


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Flatten the tensors of a state as `pack` does."""
    rows = [_row(part) for part in tensors]
    flat = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def unpack(flat: Tensor, like: State) -> State:
    """Give a (batch, dim) tensor the structure, shapes (but for the batch) and dtypes of `like`."""
    return Layout(like).unpack(flat)


class Layout:
    """How a state lies in a (batch, dim) tensor: its structure, and shape and dtype of every part; no values.

    Args:
        like: the state.
    """

    def __init__(self, like: State) -> None:
        tensors = parts(like)
        self.structure = tree_flatten(like)[1]
        self.parts = [(_width(part), part.shape[1:], part.dtype) for part in tensors]

    def tensors(self, flat: Tensor) -> list[Tensor]:
        """Return the parts of the state that lies in a (batch, dim) tensor."""
        columns = (flat,) if len(self.parts) == 1 else flat.split([width for width, _, _ in self.parts], dim=1)
        return [_part(column, shape, dtype) for column, (_, shape, dtype) in zip(columns, self.parts, strict=True)]

    def unpack(self, flat: Tensor) -> State:
        """Return the state that lies in a (batch, dim) tensor."""
        return self.structure.unflatten(self.tensors(flat))


def matched(fz: State, z: Sequence[Tensor], structure: TreeSpec) -> list[Tensor]:
    """Return the tensors of f(z), in the order of those of `z`.

    Raises:
        ValueError: if they do not fit those of `z`, which has this structure.
    """
    try:
        found = structure.flatten_up_to(fz)
    except ValueError:
        found = []
    if len(found) != len(z) or not all(map(_fits, found, z)):
        wanted = shapes(structure.unflatten(z))
        raise ValueError(f"`f` must return the structure and shapes of its argument: {wanted}, got {shapes(fz)}.")
    return list(map(_same_kind, found, z))


def _fits(new: object, old: Tensor) -> bool:
    return isinstance(new, Tensor) and new.shape == old.shape


def _same_kind(new: Tensor, old: Tensor) -> Tensor:
    """Make a real tensor complex where the state is; that loses nothing, and nothing else may change its kind."""
    if old.is_complex() and not new.is_complex():
        return new.to(old.dtype)
    if new.is_complex() == old.is_complex() and (new.is_floating_point() or new.is_complex()):
        return new
    raise ValueError(f"`f` must return numbers of the kind of its argument: {old.dtype}, got {new.dtype}.")


def _width(part: Tensor) -> int:
    return math.prod(part.shape[1:]) * (2 if part.is_complex() else 1)


def _row(part: Tensor) -> Tensor:
    real = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
    return real if real.ndim == 2 else real.reshape(part.shape[0], _width(part))


def _part(column: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if not dtype.is_complex:
        return (column if len(shape) == 1 else column.reshape(column.shape[0], *shape)).to(dtype)
    pairs = column.reshape(column.shape[0], *shape, 2)  # not `view_as_complex`, which columns are seldom aligned for
    return torch.complex(pairs[..., 0], pairs[..., 1]).to(dtype)


def mix(z: State, fz: State, damping: float) -> State:
    """Return (1 − damping)·z + damping·fz in the dtype of `z`, the damped step of Geng et al. 2021, Eq. 12.

    Raises:
        ValueError: if `fz` has not the structure and shapes of `z`.
    """
    tensors, structure = parts(z), tree_flatten(z)[1]
    mixed = [_mix(old, new, damping) for old, new in zip(tensors, matched(fz, tensors, structure), strict=True)]
    return structure.unflatten(mixed)


def _mix(z: Tensor, fz: Tensor, damping: float) -> Tensor:
    fz = fz.to(z.dtype)
    if damping != 1:
        return torch.lerp(z, fz, damping)
    # Without a graph it may be memory that f writes to at every call.
    return fz if fz.requires_grad else fz.clone()
