"""Products and row updates of whole states, with the kernels that measured fastest."""

import torch
from torch import Tensor

from deq_lightning.solvers.transforms import is_batched, transformed

# A history of states is stored as (batch, length, dim), and its products are written as a row times a matrix: on CPUs
# the equivalent matrix times a column is five to ten times slower (torch 2.15, batch 16 to 128, dim 256 to 16384), and
# einsum picks the slow one.

NO_HISTORY = "Without history use `FixedPointIteration`."


def inner_products(history: Tensor, state: Tensor) -> Tensor:
    """Return the (batch, length) inner products of each remembered state with a (batch, dim) state."""
    return torch.bmm(state[:, None], history.transpose(1, 2))[:, 0]


def combination(weights: Tensor, history: Tensor) -> Tensor:
    """Return the (batch, dim) sum of the remembered states with (batch, length) weights."""
    return torch.bmm(weights[:, None], history)[:, 0]


def replace_rows(mask: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Write the rows of `new` over those of `old` where the (batch,) mask holds, and return `old`; both (batch, dim).

    `where` with a mask broadcast along the rows takes time per element, so it is given fewer, wider elements; the bits
    are only copied. Arithmetic with the mask would be as fast, but 0 · NaN is NaN.
    """
    if torch.compiler.is_compiling() or transformed():  # what is exported may run with a graph; no transform can write
        return torch.where(mask[:, None], new, old)
    wide = _has_wide_rows(old) and _has_wide_rows(new)
    target, source = (old.view(WIDE), new.view(WIDE)) if wide else (old, new)
    torch.where(mask[:, None], source, target, out=target)
    return old


def batched_like(state: Tensor, other: Tensor) -> Tensor:
    """Return a state that stands for as many tensors as `other`, of the same shape, does."""
    return torch.where(torch.ones_like(other, dtype=torch.bool), state, other) if is_batched(other) else state


WIDE = torch.complex128
KNOW_WIDE = ("cpu", "cuda")  # where that was measured; Apple's GPUs do not have the type


def _has_wide_rows(state: Tensor) -> bool:
    """Say whether the memory of a (batch, dim) tensor may be read as wide elements."""
    share = WIDE.itemsize // state.element_size()
    places = (state.shape[1], state.stride(0), state.storage_offset())
    aligned = state.shape[1] > 0 and all(place % share == 0 for place in places)
    return aligned and state.is_contiguous() and state.device.type in KNOW_WIDE
