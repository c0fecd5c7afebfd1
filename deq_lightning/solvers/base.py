"""What every solver shares: the contract and the loop."""

import copy
from abc import ABC, abstractmethod
from typing import Any, Literal, Protocol, final, get_args

import torch
from torch import Tensor

from deq_lightning.configured import Configured, at_least, one_of, whole, within
from deq_lightning.precision import autocast_dtype, full_precision
from deq_lightning.solvers.algebra import batched_like
from deq_lightning.solvers.best_iterate import BestIterate
from deq_lightning.solvers.flat_map import FlatMap
from deq_lightning.solvers.solution import FixedPointMap, Solution, spread
from deq_lightning.solvers.transforms import is_batched
from deq_lightning.state import State, pack, parts, unpack

# When less than this share of the batch is still running, a map that can be restricted is restricted to it: at most a
# third of the work goes to finished samples, and copying the history stays rare.
CROWDED = 0.75

Keep = Literal["best", "last"]


class Advance(Protocol):
    """The step of a solve: from an iterate, f of it and their difference f(z) − z, each (batch, dim), to the next.

    It must not write to its arguments, nor keep `fz`, which f may write to. If it also has `select(rows)`, which keeps
    the memory of these samples only, finished samples can leave the solve.
    """

    def __call__(self, z: Tensor, fz: Tensor, gap: Tensor) -> Tensor:
        """Return the next iterate."""


class Solver(Configured, ABC):
    """Solves z = f(z) for each sample of the batch separately.

    To derive a solver, implement `start`, which returns the step from one iterate to the next (see `Advance`).
    Evaluations are counted the same way everywhere: one call of f is one step.

    Args:
        max_steps: maximum evaluations of f, 1 or more.
        rtol: a sample has converged when ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖; in [0, 1). Above 0, it has also converged, to
            the origin, when ‖f(z)‖ and ‖f(z) − z‖ are at most ε times the larger of the two at the start; ε is the
            rounding of the dtype. With both tolerances 0 the whole budget runs and the host never waits for the device.
        atol: absolute part of the tolerance, in the units of the state's Euclidean norm.
        check_every: evaluations between checks of the stop test (the first check is at the first evaluation). A check
            makes the host wait for the device.
        eval_max_steps: maximum evaluations of f when a model is in evaluation mode, 1 or more. None: as in training.
            `solve` itself knows no modes: a model asks for `for_mode`.
        keep: which iterate a sample gets that has spent its budget: the one with the lowest residual, `best`, or the
            `last`, to which f has been applied `max_steps` times. While information still travels through a long input
            the residual stays on a plateau, and the lowest may be an early one; a state that is carried on needs the
            last. One more evaluation measures its residual.
        min_steps: if given, each solve in training mode has a random budget, uniform from `min_steps` to `max_steps`,
            drawn from PyTorch's generator: the model then learns to use few evaluations and many. None: `max_steps`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    eval_max_steps: int | None = None
    keep: Keep = "best"
    min_steps: int | None = None

    def __init__(
        self,
        max_steps: int = 30,
        rtol: float = 1e-3,
        atol: float = 0.0,
        check_every: int = 4,
        eval_max_steps: int | None = None,
        keep: Keep = "best",
        min_steps: int | None = None,
    ) -> None:
        whole(1, max_steps=max_steps, check_every=check_every)
        if eval_max_steps is not None:
            whole(1, "Leave it out for the budget of training.", eval_max_steps=eval_max_steps)
        if min_steps is not None:
            whole(1, "Leave it out for a fixed budget.", most=max_steps, min_steps=min_steps)
        one_of(get_args(Keep), keep=keep)
        within("[0, 1)", "At 1 a solve would end where it starts.", rtol=rtol)
        at_least(0, atol=atol)
        self.max_steps = max_steps
        self.rtol = rtol
        self.atol = atol
        self.check_every = check_every
        self.eval_max_steps = eval_max_steps
        self.keep = keep
        self.min_steps = min_steps

    @abstractmethod
    def start(self, z: Tensor) -> Advance:
        """Begin a solve at the (batch, dim) tensor `z`.

        Returns:
            The step, as described by `Advance`. Its memory lasts for this one solve.
        """

    def start_on(self, f: FixedPointMap, z: Tensor) -> Advance:
        """Begin a solve of `f`; override it in a solver that needs more of the map than its values."""
        del f
        return self.start(z)

    @property
    def budget(self) -> int:
        """Evaluations that a solve may take: with `keep="last"`, one more than `max_steps` measures the residual."""
        return self.max_steps + (self.keep == "last")

    def for_mode(self, training: bool) -> "Solver":
        """Return the solver as a model uses it in training, with a budget that is drawn, or in evaluation mode."""
        if training and self.min_steps is not None:
            return self.changed(max_steps=int(torch.randint(self.min_steps, self.max_steps + 1, ())))
        if not training and self.eval_max_steps is not None:
            return self.changed(max_steps=self.eval_max_steps)
        return self

    def for_evaluation(self) -> "Solver":
        """Return the solver with its budget for evaluation mode."""
        return self.for_mode(training=False)

    def changed(self, **settings: Any) -> "Solver":
        """Return a copy with other settings, which are not checked."""
        other = copy.copy(self)
        vars(other).update(settings)
        return other

    @final
    def solve(self, f: FixedPointMap, z0: State, scale: Tensor | None = None) -> Solution:
        """Find z = f(z) from `z0`, without a graph.

        Args:
            f: maps a state to the same structure and shapes, without writing to it. If it has `subset(rows)`, which
                returns the map of these samples alone (or None), finished samples are no longer evaluated. If it has a
                `partition` that is not None, the solver's algebra treats the state as one sample, and stopping, choice
                and report go by the samples of the partition. If it has a true `whole_budget`, there is no stop test.
            z0: the starting point: a tensor or a pytree of tensors (tuples, dicts and so on), floating-point or
                complex, whose dimension 0 is the batch. Complex numbers are solved for as pairs of real ones.
            scale: (batch,) what residuals and `rtol` are relative to. None: ‖f(z)‖. A linear system whose right-hand
                side is b passes ‖b‖: an iterate that is far too long would look good beside its own length.

        Returns:
            The solution; `Solution` says how it is chosen.

        Raises:
            ValueError: if `z0` is no such state, or f breaks its contract.
        """
        return self.run(f, z0, scale)[0]

    @final
    @torch.no_grad()
    def run(self, f: FixedPointMap, z0: State, scale: Tensor | None = None) -> tuple[Solution, Advance | None]:
        """Find z = f(z) as `solve` does, and also return the solver's memory at the end.

        The memory is as large as the solver's history. It is None if samples left the solve before its end.
        """
        z = pack(z0).detach().clone()  # f may write to what the caller holds
        device = z.device.type
        flat = FlatMap(f, like=z0, device=device)
        partition = spread(getattr(f, "partition", None), z0)
        best = BestIterate(z, self.atol, self.rtol, scale, partition, last=self.keep == "last")
        # Without values no stop test is possible: the whole budget runs, and what has converged stays as it is.
        whole = torch.compiler.is_exporting() or z.is_meta or getattr(f, "whole_budget", False)
        watched = (self.atol > 0 or self.rtol > 0) and not whole
        digits = torch.finfo(z.dtype).bits
        rounds = any(torch.finfo(part.dtype).bits < digits for part in parts(z0))
        # Mixed precision is the map's business; the solver's own products must not be rounded to half.
        with full_precision(device):
            for step in range(1, self.budget + 1):
                fz = flat(z).detach()  # `no_grad` stops the innermost transform alone
                if step == 1:
                    advance = self.start_on(f, batched_like(z, fz))
                    watched = watched and not is_batched(fz)
                gap = fz - z
                best.update(z, fz, gap)
                running = best.running() if watched and self._looks_at(step) else None
                if step == self.budget or (running is not None and len(running) == 0):
                    break
                fz, gap = best.without_diverged(z, fz, gap)
                z = advance(z, fz, gap)
                own = z is not fz
                del fz, gap  # two states less while f works
                if not own:
                    z = z.clone()  # f may write to what it returned
                if rounds:
                    z = pack(unpack(z, z0))  # the point that f sees
                if running is not None and len(running) < CROWDED * len(z) and hasattr(advance, "select"):
                    smaller = flat.subset(running)
                    if smaller is not None:
                        flat, z = smaller, z[running]
                        advance.select(running)
                        best.select(running)
        if autocast_dtype(device) is not None:
            # Weights cast without a graph would be reused, without their gradient, by the next evaluation with one.
            torch.clear_autocast_cache()
        return best.solution(like=z0), advance if best.rows is None else None

    def _looks_at(self, step: int) -> bool:
        return (step - 1) % self.check_every == 0
