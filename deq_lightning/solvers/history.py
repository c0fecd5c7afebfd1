"""Products with a history of states, stored as (batch, length, dim).

Both are written as a row times a matrix: on CPUs the equivalent matrix times a column is five to ten times slower
(torch 2.15, batch 16 to 128, dim 256 to 16384), and einsum picks the slow one.
"""

import torch
from torch import Tensor


def inner_products(history: Tensor, state: Tensor) -> Tensor:
    """Return the (batch, length) inner products of each remembered state with a (batch, dim) state."""
    return torch.bmm(state[:, None], history.transpose(1, 2))[:, 0]


def combination(weights: Tensor, history: Tensor) -> Tensor:
    """Return the (batch, dim) sum of the remembered states with (batch, length) weights."""
    return torch.bmm(weights[:, None], history)[:, 0]


def check_length(history: int) -> int:
    """Return `history` if it can be the length of a history.

    Raises:
        ValueError: if it is below 1.
    """
    if history < 1:
        raise ValueError(f"`history` must be 1 or more, got {history}. Without history, use `FixedPointIteration`.")
    return history


def check_damping(damping: float) -> float:
    """Return `damping` if it is in (0, 1].

    Raises:
        ValueError: if it is not.
    """
    if not 0 < damping <= 1:
        raise ValueError(f"`damping` must be in (0, 1], got {damping}. 1 takes the whole step f(z) − z.")
    return damping
