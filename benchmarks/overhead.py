"""Where a solver's time goes on a map that costs next to nothing: the passes that the contract needs, and the rest.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/overhead.py

Microseconds a step, the lowest of all rounds, on the `tanh` map: f alone, f with each pass over the state needed to
know and keep the best iterate, the whole solvers, and the operators of a solve by their own time.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from maps import SOLVERS, tanh
from measure import interleaved, versions
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from deq_lightning.solvers.algebra import replace_rows


def passes(f: Callable[[Tensor], Tensor], z0: Tensor, steps: int, count: int) -> None:
    """Iterate f with the first `count` of: the difference, two norms, writing the better rows."""
    z, best, better = z0, z0.clone(), torch.ones(len(z0), dtype=torch.bool)
    for _ in range(steps):
        fz = f(z)
        gap = fz - z if count > 0 else fz
        if count > 1:
            torch.linalg.vector_norm(gap, dim=1), torch.linalg.vector_norm(fz, dim=1)
        if count > 2:
            replace_rows(better, best, z)
        z = fz


@torch.no_grad()
def main() -> None:
    """Print the table and the operators."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="evaluations of f")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    f, z0, _ = tanh()
    names = ("f", "f, difference", "f, difference, norms", "f, difference, norms, choice")
    actions: dict[str, Callable[[], object]] = {
        name: partial(passes, f, z0, options.steps, count) for count, name in enumerate(names)
    }
    for name, make in SOLVERS.items():
        actions[name] = partial(make(options.steps).solve, f, z0)
    lowest = {name: min(times) for name, times in interleaved(actions, options.rounds).items()}
    print(f"{versions()}\n\n| | µs a step | over f |\n|---|---|---|")
    for name, seconds in lowest.items():
        print(f"| {name} | {seconds / options.steps * 1e6:.0f} | {seconds / lowest['f']:.2f} |")
    for name, make in SOLVERS.items():
        with profile(activities=[ProfilerActivity.CPU]) as record:
            make(options.steps).solve(f, z0)
        events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)[:12]
        total = {event.key: event.self_cpu_time_total / options.steps for event in events}
        print(f"\n{name}, own µs a step by operator:", ", ".join(f"{key} {time:.0f}" for key, time in total.items()))


if __name__ == "__main__":
    main()
