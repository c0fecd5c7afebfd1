"""Solvers side by side with torchdeq's: time over bare evaluations, residual reached, peak memory.

    pip install -e ".[bench]" && OMP_WAIT_POLICY=PASSIVE python benchmarks/peers.py

Tolerance 0, so that all run the whole budget of evaluations of f (torchdeq's Broyden makes one more). Times are medians
of ratios of the process's own time, measured in turn in one run.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from maps import MAPS, Map
from measure import interleaved, peak_bytes, ratio, versions
from torch import Tensor
from torchdeq.solver.anderson import anderson_solver
from torchdeq.solver.broyden import broyden_solver
from torchdeq.solver.fp_iter import fixed_point_iter

from deq_lightning import Anderson, Broyden, FixedPointIteration

OURS = {
    "FixedPointIteration": lambda steps: FixedPointIteration(steps, rtol=0),
    "Anderson(6)": lambda steps: Anderson(steps, rtol=0, history=6),
    "Broyden(12)": lambda steps: Broyden(steps, rtol=0, history=12),
}
THEIRS: dict[str, Callable[..., Any]] = {
    "FixedPointIteration": fixed_point_iter,
    "Anderson(6)": anderson_solver,
    "Broyden(12)": broyden_solver,
}


def residual(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return each sample's ‖f(z) − z‖ / ‖f(z)‖."""
    fz = f(z)
    return (fz - z).flatten(1).norm(dim=1) / fz.flatten(1).norm(dim=1)


def bare(problem: Map, steps: int) -> Tensor:
    """Evaluate f as often as a solver may, and do nothing else."""
    z = problem.z0
    for _ in range(steps):
        z = problem.f(z)
    return z


def compare(problem: Map, name: str, steps: int, rounds: int) -> dict[str, float]:
    """Measure one solver on one map."""
    ours, theirs = OURS[name](steps), THEIRS[name]
    actions: dict[str, Callable[[], Tensor]] = {
        "bare": lambda: bare(problem, steps),
        "ours": lambda: ours.solve(problem.f, problem.z0).z,  # type: ignore[dict-item,return-value]
        "theirs": lambda: theirs(problem.f, problem.z0, max_iter=steps, tol=0.0)[0],
    }
    times = interleaved(actions, rounds)
    state = problem.z0.numel() * problem.z0.element_size()
    row = {}
    for side in ("ours", "theirs"):
        reached = residual(problem.f, actions[side]().view_as(problem.z0))
        row |= {
            f"{side}_time": ratio(times, side, "bare"),
            f"{side}_residual": reached.median().item(),
            f"{side}_worst": reached.max().item(),
            f"{side}_states": peak_bytes(actions[side]) / state,
        }
    return row


@torch.no_grad()
def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="evaluations of f")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/peers.json"))
    options = parser.parse_args()
    print(f"{versions()}; N = {options.steps}; ours / torchdeq's")
    print("| map | solver | time / bare | median residual | worst residual | peak states |\n|---|---|---|---|---|---|")
    table: dict[str, dict[str, float]] = {}
    for map_name, make in MAPS.items():
        for solver in OURS:
            row = compare(make(), solver, options.steps, options.rounds)
            table[f"{map_name} {solver}"] = row
            cells = [f"{row[f'ours_{key}']:.{digits}} / {row[f'theirs_{key}']:.{digits}}" for key, digits in COLUMNS]
            print(f"| {map_name} | {solver} | {' | '.join(cells)} |", flush=True)
    options.json.write_text(json.dumps({"versions": versions(), "steps": options.steps, "table": table}, indent=2))


COLUMNS = (("time", "2f"), ("residual", "1e"), ("worst", "1e"), ("states", "0f"))

if __name__ == "__main__":
    main()
