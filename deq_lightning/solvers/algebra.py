"""Products and row updates of whole states, with the kernels that measured fastest."""

import torch
from torch import Tensor

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


def replace_rows(mask: Tensor, old: Tensor, new: Tensor) -> None:
    """Write the rows of `new` over those of `old` where the (batch,) mask holds; both are (batch, dim).

    `where` with a mask broadcast along the rows takes time per element, so it is given fewer, wider elements; the bits
    are only copied. Arithmetic with the mask would be as fast, but 0 · NaN is NaN.
    """
    wide = torch.complex128
    divides = old.shape[1] * old.element_size() % wide.itemsize == 0 and new.is_contiguous() and old.is_contiguous()
    if divides and not torch.compiler.is_compiling():  # a compiler fuses the update, but not for complex numbers
        old, new = old.view(wide), new.view(wide)
    torch.where(mask[:, None], new, old, out=old)
