"""The inputs and results of a solver."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from deq_lightning.state import State, pack, parts, shapes

FixedPointMap = Callable[[Any], Any]  # from a State to one of the same structure


@dataclass(frozen=True)
class Partition:
    """The sample that each row belongs to, in a state of several samples that can only be evaluated together.

    A batch of graphs is one such state, (1, rows, ...), whose rows are the nodes.

    Args:
        index: (rows,) sample of each row, 0 to count − 1.
        count: number of samples.
        together: whether the samples depend on each other, so that they stop together, and one iterate serves all.
    """

    index: Tensor
    count: int
    together: bool = False


def spread(partition: Partition | None, z: State) -> Partition | None:
    """Return the partition of the elements of a packed state: where it is one tensor, that of its rows will do.

    Raises:
        ValueError: if the rows of the state are not those of the partition.
    """
    if partition is None:
        return None
    rows, tensors = len(partition.index), parts(z)
    if any(part.shape[:2] != (1, rows) for part in tensors):
        raise ValueError(f"With a `partition` of {rows} rows a state must be (1, {rows}, ...), got {shapes(z)}.")
    if len(tensors) == 1:
        return partition
    columns = [partition.index.repeat_interleave(pack(part).shape[1] // rows) for part in tensors]
    return replace(partition, index=torch.cat(columns))


class Status(IntEnum):
    """How the solve of one sample ended; `message` explains it."""

    message: str

    def __new__(cls, code: int, message: str) -> "Status":
        """Attach the message to the code."""
        status = int.__new__(cls, code)
        status._value_ = code
        status.message = message
        return status

    converged = 0, "The residual met the tolerance."
    max_steps = (
        1,
        "The solver spent `max_steps` evaluations with the residual above the tolerance. "
        "Raise `max_steps`, loosen `rtol`, or make the map more contractive.",
    )
    diverged = (
        2,
        "The iterates became non-finite; the last finite best one is returned. "
        "Use damping, another solver, or a map of smaller spectral radius.",
    )


@dataclass(frozen=True)
class Solution:
    """The result of a solve and its cost.

    Args:
        z: the fixed point, with the structure of `z0`: for each sample the first iterate that met the tolerance, else
            the iterate with the lowest residual, and with the smallest ‖f(z) − z‖ where residuals are equal; or the
            last one, if the solver keeps that.
        residual: (batch,) ‖f(z) − z‖ / ‖f(z)‖ (or the scale given) of exactly this `z`; infinite if f never returned
            finite values. Where ‖f(z)‖ ≤ s = ε·max(‖f(z₀)‖, ‖f(z₀) − z₀‖), with ε the rounding of the dtype, it is
            relative to s / max(rtol, ε) instead, so that it does not stay constant while z goes to the origin.
        steps: (batch,) evaluations of f until the sample met the tolerance or diverged, else all of them.
        status: (batch,) codes of `Status`.
        evaluations: number of calls of f.
    """

    z: State
    residual: Tensor
    steps: Tensor
    status: Tensor
    evaluations: int
