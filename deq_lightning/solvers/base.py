"""What every solver shares: the contract, the loop, and the choice of the iterate that is returned."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from deq_lightning.configured import Configured, check_at_least
from deq_lightning.solvers.algebra import choose_rows
from deq_lightning.state import State, pack, parts, shapes, unpack

FixedPointMap = Callable[[Any], Any]  # from a State to one of the same structure
Advance = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        residual: (batch,) ‖f(z) − z‖ / ‖f(z)‖ of exactly this `z`; infinite if f never returned finite values.
        steps: (batch,) evaluations of f until the sample met the tolerance or diverged, else all of them.
        status: (batch,) codes of `Status`.
        evaluations: how often f was called.
    """

    z: State
    residual: Tensor
    steps: Tensor
    status: Tensor
    evaluations: int


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
            A function from an iterate, f of it and their difference f(z) − z, each (batch, dim), to the next iterate.
            It must not write to its arguments. Whatever it remembers lives as long as this one solve.
        """

    @torch.no_grad()
    def solve(self, f: FixedPointMap, z0: State) -> Solution:
        """Find z = f(z) from `z0`, without a graph.

        Args:
            f: maps a tensor or a tuple of tensors (dimension 0 is the batch) to the same structure and shapes.
            z0: where to start.

        Returns:
            The solution; `Solution` says how it is chosen.
        """
        z = pack(z0).detach()
        evaluate = self._flat_map(f, z0, z)
        best = BestIterate(z, self.atol, self.rtol)
        watched = self.atol > 0 or self.rtol > 0
        rounds = any(part.dtype != z.dtype for part in parts(z0))
        # Mixed precision is the map's business; the solver's own products must not be rounded to half.
        with torch.autocast(z.device.type, enabled=False):
            advance = self.start(z)
            for step in range(1, self.max_steps + 1):
                fz = evaluate(z)
                gap = fz - z
                best.update(z, fz, gap)
                if step == self.max_steps or (watched and self._looks_at(step) and best.settled()):
                    break
                z = advance(z, fz, gap)
                if rounds:
                    z = pack(unpack(z, z0))  # the point that f sees
        if torch.is_autocast_enabled(z.device.type):
            # Weights cast without a graph would be reused, without their gradient, by the next evaluation with one.
            torch.clear_autocast_cache()
        return best.solution(like=z0)

    def _looks_at(self, step: int) -> bool:
        return (step - 1) % self.check_every == 0

    @staticmethod
    def _flat_map(f: FixedPointMap, z0: State, flat: Tensor) -> Callable[[Tensor], Tensor]:
        """Wrap f as a map of (batch, dim) tensors that runs under the autocast state of the caller."""
        device = flat.device.type
        autocast: AbstractContextManager[None] = nullcontext()
        if torch.is_autocast_enabled(device):
            autocast = torch.autocast(device, dtype=torch.get_autocast_dtype(device))

        expected = shapes(z0)

        def evaluate(z: Tensor) -> Tensor:
            with autocast:
                fz = f(unpack(z, z0))
            if shapes(fz) != expected:
                raise ValueError(
                    f"`f` must return the structure and shapes of its argument: {expected}, got {shapes(fz)}."
                )
            return pack(fz)

        return evaluate


class BestIterate:
    """Keeps, sample by sample, the iterate to return and what is to be said of it.

    A sample is running until it meets the tolerance or turns non-finite; from then on nothing of it changes. Only what
    the next evaluation needs is computed during the solve; steps and status are read off the record at its end.

    Args:
        z: (batch, dim) the starting point.
        atol: absolute tolerance.
        rtol: tolerance relative to ‖f(z)‖.
    """

    def __init__(self, z: Tensor, atol: float, rtol: float) -> None:
        self.z = z
        self.has_atol = atol > 0
        # As tensors made on the device, because every use of a number with a tensor would first make a tensor of it.
        numbers = (atol, rtol, torch.inf, torch.finfo(z.dtype).tiny)
        self.atol, self.rtol, self.infinity, self.tiny = (z.new_full((), number) for number in numbers)
        self.residual = self.infinity.expand(len(z))
        self.bound = self.residual  # the residual to beat; −inf once the sample no longer runs
        self.met: list[Tensor] = []
        self.running: list[Tensor] = []  # whether each evaluation, taken alone, lets the sample run on

    def update(self, z: Tensor, fz: Tensor, gap: Tensor) -> None:
        """Take note of one evaluation."""
        distance = torch.linalg.vector_norm(gap, dim=1)
        scale = torch.linalg.vector_norm(fz, dim=1)
        residual = distance / torch.maximum(scale, self.tiny)  # 0 / 0 is an exact fixed point at the origin
        threshold = torch.addcmul(self.atol, scale, self.rtol)
        finite = distance < self.infinity
        met = (distance <= threshold) & finite
        running = (distance > threshold) & finite
        better = residual < self.bound
        if self.has_atol:  # then a sample can meet the tolerance with a residual that is not its lowest
            better |= met & (self.bound > -self.infinity)
        self.z = choose_rows(better, z, self.z)
        self.residual = torch.where(better, residual, self.residual)
        self.bound = torch.minimum(self.bound, torch.where(running, self.residual, -self.infinity))
        self.met.append(met)
        self.running.append(running)

    def settled(self) -> bool:
        """Say whether no sample is running any more (waits for the device)."""
        return bool((self.bound == -self.infinity).all())

    def solution(self, like: State) -> Solution:
        """Report the iterates kept, in the structure of `like`."""
        evaluations = len(self.running)
        ran = torch.stack(self.running).cumprod(dim=0).sum(dim=0)  # evaluations before the one that ended it
        steps = (ran + 1).clamp_max(evaluations)
        converged = torch.stack(self.met).gather(0, steps[None] - 1)[0]
        status = torch.full_like(steps, Status.diverged)
        status.masked_fill_(ran == evaluations, Status.max_steps).masked_fill_(converged, Status.converged)
        return Solution(unpack(self.z, like), self.residual, steps, status, evaluations)
