"""What every solver shares: the contract, the loop, and the choice of the iterate that is returned."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deq_lightning.configured import Configured, check_at_least
from deq_lightning.solvers.algebra import replace_rows
from deq_lightning.state import State, pack, parts, shapes, unpack

FixedPointMap = Callable[[Any], Any]  # from a State to one of the same structure

# With fewer running samples than this part of the batch, a map that can be restricted is restricted to them: no more
# than a third of the work goes to samples that are done, and copying the history stays rare.
CROWDED = 0.75


@dataclass(frozen=True)
class Partition:
    """Which sample every row belongs to, in a state of several samples that can only be evaluated together.

    A batch of graphs is one such state, (1, rows, ...), whose rows are the nodes.

    Args:
        index: (rows,) sample of each row, 0 to count − 1.
        count: samples.
    """

    index: Tensor
    count: int


class Advance(Protocol):
    """The step of a solve: from an iterate, f of it and their difference f(z) − z, each (batch, dim), to the next.

    It must not write to its arguments. One that also has `select(rows)`, which keeps what it remembers of these samples
    only, lets samples that are done leave the solve.
    """

    def __call__(self, z: Tensor, fz: Tensor, gap: Tensor) -> Tensor:
        """Return the next iterate."""


class Status(IntEnum):
    """How the solve of one sample ended; `message` is the sentence for a person."""

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
    """The answer of a solver and what it cost.

    Args:
        z: the fixed point, of the structure of `z0`: for each sample the first iterate that met the tolerance, else the
            one of lowest residual.
        residual: (batch,) ‖f(z) − z‖ / ‖f(z)‖ (or the scale given) of exactly this `z`; infinite if f never returned
            finite values.
        steps: (batch,) evaluations of f until the sample met the tolerance or diverged, else all of them.
        status: (batch,) codes of `Status`.
        evaluations: how often f was called.
        transposed_inverse: maps (batch, dim) to an estimate of its product with (I − Jᵀ)⁻¹; None unless asked for, and
            then from solvers that build one.
    """

    z: State
    residual: Tensor
    steps: Tensor
    status: Tensor
    evaluations: int
    transposed_inverse: Callable[[Tensor], Tensor] | None = None


class Solver(Configured, ABC):
    """Solves z = f(z), every sample of the batch for itself.

    Subclasses implement `start`. Evaluations are counted the same way everywhere: one call of f is one step.

    Args:
        max_steps: evaluations of f at most, 1 or more.
        rtol: a sample has converged when ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖. With both tolerances 0 the whole budget runs
            and the host never waits for the device.
        atol: absolute part of the tolerance, in the units of the state's Euclidean norm.
        check_every: evaluations between two looks at the stop test (the first look is at the first evaluation). A look
            makes the host wait for the device.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, max_steps: int = 30, rtol: float = 1e-3, atol: float = 0.0, check_every: int = 4) -> None:
        check_at_least(1, max_steps=max_steps, check_every=check_every)
        check_at_least(0, rtol=rtol, atol=atol)
        self.max_steps = max_steps
        self.rtol = rtol
        self.atol = atol
        self.check_every = check_every

    @abstractmethod
    def start(self, z: Tensor) -> Advance:
        """Begin a solve at the (batch, dim) tensor `z`.

        Returns:
            The step, as described by `Advance`. Whatever it remembers lives as long as this one solve.
        """

    @torch.no_grad()
    def solve(self, f: FixedPointMap, z0: State, scale: Tensor | None = None, keep_inverse: bool = False) -> Solution:
        """Find z = f(z) from `z0`, without a graph.

        Args:
            f: maps a tensor or a tuple of tensors (dimension 0 is the batch) to the same structure and shapes. If it
                has `subset(rows)`, which returns the map of these samples alone (or None), samples that are done are
                not evaluated any further. If it has a `partition` that is not None, the state is one sample to the
                algebra of the solver, and stopping, choice and report go by the samples of the partition.
            z0: where to start.
            scale: (batch,) what residuals and `rtol` are relative to. None: ‖f(z)‖. A linear system whose right-hand
                side is b passes ‖b‖: an iterate that is far too long would look good beside its own length.
            keep_inverse: whether the solution keeps what the solver has learnt of (I − J)⁻¹, and with it the memory.

        Returns:
            The solution; `Solution` says how it is chosen.
        """
        z = pack(z0).detach()
        flat = FlatMap(f, like=z0, device=z.device.type)
        best = BestIterate(z, self.atol, self.rtol, scale, getattr(f, "partition", None))
        watched = self.atol > 0 or self.rtol > 0
        rounds = any(part.dtype != z.dtype for part in parts(z0))
        # Mixed precision is the map's business; the solver's own products must not be rounded to half.
        with torch.autocast(z.device.type, enabled=False):
            advance = self.start(z)
            for step in range(1, self.max_steps + 1):
                fz = flat(z)
                gap = fz - z
                best.update(z, fz, gap)
                running = best.running() if watched and self._looks_at(step) else None
                if step == self.max_steps or (running is not None and len(running) == 0):
                    break
                z = advance(z, fz, gap)
                del fz, gap  # two states less while f works
                if rounds:
                    z = pack(unpack(z, z0))  # the point that f sees
                if running is not None and len(running) < CROWDED * len(z) and hasattr(advance, "select"):
                    smaller = flat.subset(running)
                    if smaller is not None:
                        flat, z = smaller, z[running]
                        advance.select(running)
                        best.select(running)
        if torch.is_autocast_enabled(z.device.type):
            # Weights cast without a graph would be reused, without their gradient, by the next evaluation with one.
            torch.clear_autocast_cache()
        solution = best.solution(like=z0)
        if keep_inverse and best.rows is None:
            solution = replace(solution, transposed_inverse=getattr(advance, "transposed_inverse", None))
        return solution

    def _looks_at(self, step: int) -> bool:
        return (step - 1) % self.check_every == 0


class FlatMap:
    """A map of states as one of (batch, dim) tensors, evaluated under the autocast state of whoever makes it.

    Args:
        f: the map.
        like: a state that gives structure, shapes (but for the batch) and dtypes.
        device: type of the device.
    """

    def __init__(self, f: FixedPointMap, like: State, device: str) -> None:
        self.f = f
        self.like = like
        self.device = device
        self.half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate f at the (batch, dim) tensor `z`."""
        state = unpack(z, self.like)
        with self._autocast():
            fz = self.f(state)
        if shapes(fz) != shapes(state):
            raise ValueError(
                f"`f` must return the structure and shapes of its argument: {shapes(state)}, got {shapes(fz)}."
            )
        return pack(fz)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.half is None else torch.autocast(self.device, dtype=self.half)

    def subset(self, rows: Tensor) -> "FlatMap | None":
        """Return the map of some of the samples, or None where f cannot be restricted."""
        with self._autocast():
            f = self.f.subset(rows) if hasattr(self.f, "subset") else None
        if f is None:
            return None
        smaller = copy.copy(self)
        smaller.f = f
        return smaller


class BestIterate:
    """Keeps, sample by sample, the iterate to return and what is to be said of it.

    A sample is running until it meets the tolerance or turns non-finite; from then on nothing of it changes. During the
    solve one key per evaluation decides: the relative residual, or −1 where only the absolute tolerance is met. Steps,
    status and residual are read off the record at the end.

    Args:
        z: (batch, dim) the starting point.
        atol: absolute tolerance.
        rtol: tolerance relative to the scale.
        scale: (batch,) what residuals are relative to. None: ‖f(z)‖.
        partition: the samples, where they are not the rows of `z`.
    """

    def __init__(
        self,
        z: Tensor,
        atol: float,
        rtol: float,
        scale: Tensor | None = None,
        partition: Partition | None = None,
    ) -> None:
        self.z = z.clone()
        self.partition = partition
        self.atol = atol
        self.rtol = rtol
        self.scale = scale
        # A tensor made on the device, because every use of a number with a tensor would first make a tensor of it.
        self.tiny = z.new_full((), torch.finfo(z.dtype).tiny)
        count = len(z) if partition is None else partition.count
        self.bound = z.new_full((count,), torch.inf)  # the key to beat; −inf or NaN once the sample no longer runs
        self.keys: list[Tensor] = []
        self.residuals: list[Tensor] = []
        self.rows: Tensor | None = None  # the samples still in the solve, where some have left it
        self.whole: Tensor | None = None  # the iterates of all samples

    def update(self, z: Tensor, fz: Tensor, gap: Tensor) -> None:
        """Take note of one evaluation."""
        distance = self._lengths(gap)
        scale = self._lengths(fz) if self.scale is None else self.scale
        residual = key = distance / torch.maximum(scale, self.tiny)  # 0 / 0 is an exact fixed point at the origin
        if self.atol > 0:  # then a sample can meet the tolerance with a residual that is not its lowest
            key = torch.where(distance <= self.atol + self.rtol * scale, -1, residual)
        self._replace(key < self.bound, z)
        self.bound = torch.minimum(self.bound, F.threshold(key, self.rtol, -torch.inf))
        self.keys.append(self._of_all(key))
        self.residuals.append(self._of_all(residual))

    def _lengths(self, state: Tensor) -> Tensor:
        """Return the norm of every sample's part of the state."""
        if self.partition is None:
            return torch.linalg.vector_norm(state, dim=1)
        index = self.partition.index
        squares = state.view(len(index), -1).square().sum(dim=1)
        return squares.new_zeros(self.partition.count).index_add_(0, index, squares).sqrt()

    def _replace(self, better: Tensor, z: Tensor) -> None:
        """Take over the iterates of the samples for which `better` holds."""
        if self.partition is None:
            replace_rows(better, self.z, z)
        else:
            index = self.partition.index
            replace_rows(better[index], self.z.view(len(index), -1), z.view(len(index), -1))

    def running(self) -> Tensor:
        """Return the places, among the samples in the solve, of those that still run (waits for the device)."""
        return (self.bound > -torch.inf).nonzero()[:, 0]

    def select(self, rows: Tensor) -> None:
        """Let all samples but these leave the solve."""
        self.whole = self._iterates()
        self.rows = rows if self.rows is None else self.rows[rows]
        self.z, self.bound = self.z[rows], self.bound[rows]
        self.scale = None if self.scale is None else self.scale[rows]

    def _iterates(self) -> Tensor:
        """Return the iterates of all samples, those that left and those that stayed."""
        return self.z if self.whole is None or self.rows is None else self.whole.index_copy(0, self.rows, self.z)

    def _of_all(self, values: Tensor) -> Tensor:
        """Return the (batch,) values of all samples; those that left have none any more."""
        if self.whole is None or self.rows is None:
            return values
        return values.new_full((len(self.whole),), torch.nan).index_copy(0, self.rows, values)

    def solution(self, like: State) -> Solution:
        """Report the iterates kept, in the structure of `like`."""
        keys = torch.stack(self.keys)
        evaluations = len(keys)
        ran = (keys > self.rtol).cumprod(dim=0).sum(dim=0)  # evaluations before the one that ended it
        steps = (ran + 1).clamp_max(evaluations)
        converged = keys.gather(0, steps[None] - 1)[0] <= self.rtol
        status = torch.full_like(steps, Status.diverged)
        status.masked_fill_(ran == evaluations, Status.max_steps).masked_fill_(converged, Status.converged)
        before = torch.arange(evaluations, device=keys.device)[:, None] < steps
        lowest = torch.where(before & (keys < torch.inf), keys, torch.inf).min(dim=0)
        residual = torch.stack(self.residuals).gather(0, lowest.indices[None])[0]
        residual = torch.where(lowest.values < torch.inf, residual, torch.inf)
        return Solution(unpack(self._iterates(), like), residual, steps, status, evaluations)
