"""The state of an equilibrium: a tensor or a tuple of tensors whose dimension 0 is the batch."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, ...]


def parts(state: State) -> tuple[Tensor, ...]:
    """Return the tensors of a state."""
    return (state,) if isinstance(state, Tensor) else state


def shapes(state: object) -> object:
    """Describe the structure and shapes of a state, or of what should be one."""
    if isinstance(state, tuple):
        return tuple(shapes(part) for part in state)
    return list(state.shape) if isinstance(state, Tensor) else type(state).__name__


def pack(state: State) -> Tensor:
    """Flatten a state to one (batch, dim) tensor in float32 or better, differentiably.

    Half precision is widened because residuals near a tolerance of 1e-3 are below its resolution.
    """
    rows = [part.reshape(part.shape[0], math.prod(part.shape[1:])) for part in parts(state)]
    flat = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def unpack(flat: Tensor, like: State) -> State:
    """Give a (batch, dim) tensor the structure, shapes (but for the batch) and dtypes of `like`."""
    if isinstance(like, Tensor):
        return flat.reshape(flat.shape[0], *like.shape[1:]).to(like.dtype)
    columns = flat.split([math.prod(part.shape[1:]) for part in like], dim=1)
    return tuple(
        column.reshape(flat.shape[0], *part.shape[1:]).to(part.dtype)
        for column, part in zip(columns, like, strict=True)
    )


def mix(z: State, fz: State, damping: float) -> State:
    """Return (1 − damping)·z + damping·fz in the dtype of `z`, the damped step of Geng et al. 2021, Eq. 12."""
    if isinstance(z, tuple):
        return tuple(_mix(part, new, damping) for part, new in zip(z, fz, strict=True))
    assert isinstance(fz, Tensor)
    return _mix(z, fz, damping)


def _mix(z: Tensor, fz: Tensor, damping: float) -> Tensor:
    fz = fz.to(z.dtype)
    return fz if damping == 1 else torch.lerp(z, fz, damping)


def autocasts(device: str) -> bool:
    """Say whether autocast is on for a type of device; some, such as `meta`, have none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Turn autocast off, where there is one."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
