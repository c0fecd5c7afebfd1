"""The inputs and results of a solver."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from torch import Tensor

from deq_lightning.state import State

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
            the iterate with the lowest residual.
        residual: (batch,) ‖f(z) − z‖ / ‖f(z)‖ (or the scale given) of exactly this `z`; infinite if f never returned
            finite values.
        steps: (batch,) evaluations of f until the sample met the tolerance or diverged, else all of them.
        status: (batch,) codes of `Status`.
        evaluations: number of calls of f.
    """

    z: State
    residual: Tensor
    steps: Tensor
    status: Tensor
    evaluations: int
