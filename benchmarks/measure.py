"""Times as ratios, peak memory in bytes that were really alive, and counts of the work done."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State, parts


def cpu_seconds(action: Callable[[], Any]) -> float:
    """Return the processor time that this process spends on the action."""
    start = time.process_time()
    action()
    return time.process_time() - start


def interleaved(actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time all actions in turn, A B C A B C, so that whatever else the machine does falls on all of them."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(cpu_seconds(action))
    return times


def ratio(times: Mapping[str, list[float]], name: str, base: str) -> float:
    """Return the median over the rounds of one action's time in units of another's."""
    return median(a / b for a, b in zip(times[name], times[base], strict=True))


def peak_bytes(action: Callable[[], Any]) -> int:
    """Return the most bytes that the action held at one time, from the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


class Counter:
    """A map that counts its evaluations without a graph, with one and again in backward, and backward passes."""

    def __init__(self, f: FixedPointMap) -> None:
        self.f = f
        self.bare = self.graph = self.again = self.passes = 0
        self.backward = False

    def __call__(self, z: State) -> State:
        """Evaluate the map; counted first, because checkpointing leaves it as soon as it has what it needs."""
        kind = "again" if self.backward else "graph" if torch.is_grad_enabled() else "bare"
        setattr(self, kind, getattr(self, kind) + 1)
        fz = self.f(z)
        if torch.is_grad_enabled():
            parts(fz)[0].register_hook(self._pass)
        return fz

    def _pass(self, g: Tensor) -> None:
        self.passes += 1

    @property
    def products(self) -> int:
        """Vector-Jacobian products: the passes that did not go on to the parameters."""
        return self.passes - self.graph


def versions() -> str:
    """Return what the figures depend on besides the machine."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"
