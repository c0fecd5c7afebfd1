"""What a training step costs with each gradient: Geng et al. 2021, Table 2, measured.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/complexity.py

The `conv` map of `maps.py` with its parameters. K: evaluations of the forward solver (fixed-point iteration, tolerance
0) and of the adjoint solver, or steps unrolled; k: steps of the phantom gradient, after a forward solve of 10
evaluations. Time is in bare evaluations of f without a graph, "gradient" being the step less its own forward solve.
Memory is the peak of the whole step, in states. The paper counts the memory of graphs; the histories that GMRES and
Broyden keep are counted here too.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from figures import grid, options_for, save
from maps import Map, conv
from matplotlib.figure import Figure
from measure import interleaved, peak_bytes, versions

from deq_lightning import GMRES, JFB, NPG, UPG, Broyden, FixedPointIteration, Implicit, Unrolled
from deq_lightning.gradients import GradientStrategy
from deq_lightning.solvers import FixedPointMap, Solution
from deq_lightning.state import State

SOLVER_STEPS = (5, 10, 20, 30)
PHANTOM_STEPS = (1, 2, 5, 9)
FORWARD = 10  # evaluations before a phantom gradient


class Family(NamedTuple):
    """A gradient over the budgets it is measured at, and what Table 2 says of it."""

    make: Callable[[int], GradientStrategy]
    budgets: tuple[int, ...]
    solves: Callable[[int], int]
    claim: str


def phantom(make: Callable[[int], GradientStrategy], claim: str) -> Family:
    """Return a family over k whose forward budget is fixed."""
    return Family(make, PHANTOM_STEPS, lambda k: FORWARD, claim)


def implicit(solver: Callable[..., Any]) -> Family:
    """Return implicit differentiation over K, forward and backward, by one adjoint solver."""
    return Family(
        lambda steps: Implicit(adjoint_solver=solver(steps, rtol=0)), SOLVER_STEPS, lambda steps: steps, "O(K) / O(1)"
    )


FAMILIES = {
    "Implicit, fixed-point adjoint": implicit(FixedPointIteration),
    "Implicit, Broyden(12) adjoint": implicit(Broyden),
    "Implicit, GMRES(12) adjoint": implicit(GMRES),
    "UPG": phantom(lambda k: UPG(k=k, damping=0.5), "O(k) / O(k)"),
    "NPG": phantom(lambda k: NPG(k=k, damping=0.5), "O(k) / O(1)"),
    "JFB": Family(lambda k: JFB(), (1,), lambda k: FORWARD, "–"),
    "Unrolled": Family(lambda steps: Unrolled(unroll_steps=steps), SOLVER_STEPS, lambda steps: steps, "–"),
}


@torch.no_grad()
def bare(problem: Map) -> None:
    """Evaluate f as often as the forward solve of a phantom gradient, and do nothing else."""
    z = problem.z0
    for _ in range(FORWARD):
        z = problem.f(z)


class TimedSolver:
    """The forward solver; keeps the time of every solve, so that a step can be split where it happens."""

    def __init__(self, steps: int) -> None:
        self.solver = FixedPointIteration(steps, rtol=0)
        self.seconds: list[float] = []

    def solve(self, f: FixedPointMap, z0: State) -> Solution:
        """Solve, and note the time."""
        start = time.process_time()
        solution = self.solver.solve(f, z0)
        self.seconds.append(time.process_time() - start)
        return solution


def train(problem: Map, strategy: GradientStrategy, solver: TimedSolver) -> None:
    """Solve, differentiate, and leave the gradients where the optimizer would look for them."""
    z, _ = strategy.fixed_point(problem.f, problem.z0, solver)  # type: ignore[arg-type]  # it solves
    assert isinstance(z, torch.Tensor)
    z.square().mean().backward()


def line(x: tuple[int, ...], y: list[float]) -> dict[str, float]:
    """Fit y = intercept + slope·x by least squares and say how much of the variance that explains."""
    abscissa, ordinate = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    design = torch.stack([torch.ones_like(abscissa), abscissa], dim=1)
    solution = torch.linalg.lstsq(design, ordinate).solution
    left = (ordinate - design @ solution).square().sum() / (ordinate - ordinate.mean()).square().sum().clamp_min(1e-30)
    return {"intercept": solution[0].item(), "slope": solution[1].item(), "r2": 1 - left.item()}


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Time all steps in turn and take the peak memory of each."""
    problem = conv(batch=options.batch)
    keys = [(name, budget) for name, family in FAMILIES.items() for budget in family.budgets]
    solvers = {key: TimedSolver(FAMILIES[key[0]].solves(key[1])) for key in keys}
    steps = {key: partial(train, problem, FAMILIES[key[0]].make(key[1]), solvers[key]) for key in keys}
    names = {key: f"{key[0]} {key[1]}" for key in keys}
    times = interleaved({"bare": partial(bare, problem)} | {names[key]: steps[key] for key in keys}, options.rounds)
    unit = [seconds / FORWARD for seconds in times["bare"]]
    state = problem.z0.numel() * problem.z0.element_size()
    results: dict[str, dict[str, Any]] = {}
    for name, family in FAMILIES.items():
        row: dict[str, Any] = {"budgets": family.budgets, "step": [], "gradient": [], "states": []}
        for key in ((name, budget) for budget in family.budgets):
            whole = times[names[key]]
            forward = solvers[key].seconds[-options.rounds :] or [0.0] * options.rounds  # Unrolled never solves
            row["step"].append(median(a / one for a, one in zip(whole, unit, strict=True)))
            row["gradient"].append(median((a - b) / one for a, b, one in zip(whole, forward, unit, strict=True)))
            row["states"].append(peak_bytes(steps[key]) / state)
        if len(family.budgets) > 1:
            row |= {
                "time_fit": line(family.budgets, row["gradient"]),
                "memory_fit": line(family.budgets, row["states"]),
            }
        results[name] = row
    return results


def report(results: dict[str, dict[str, Any]]) -> None:
    """Print the measurements and, beside the paper's claims, how they grow."""
    print("| gradient | K or k | step, evaluations | gradient, evaluations | peak, states |\n|---|---|---|---|---|")
    for name, row in results.items():
        for cells in zip(row["budgets"], row["step"], row["gradient"], row["states"], strict=True):
            print("| {} | {} | {:.1f} | {:.1f} | {:.1f} |".format(name, *cells))
    print("\n| gradient | Table 2: time / memory | gradient's time | R² | states per step | over the last budgets |")
    print("|---|---|---|---|---|---|")
    for name, row in results.items():
        if "time_fit" not in row:
            continue
        seconds, memory = row["time_fit"], row["memory_fit"]
        last = (row["states"][-1] - row["states"][-2]) / (row["budgets"][-1] - row["budgets"][-2])
        growth = f"{seconds['intercept']:.1f} + {seconds['slope']:.2f}·steps | {seconds['r2']:.4f}"
        print(f"| {name} | {FAMILIES[name].claim} | {growth} | {memory['slope']:.2f} | {last:.2f} |")


def plot(results: dict[str, dict[str, Any]]) -> Figure:
    """Draw the gradient's time and the step's peak memory over K or k."""
    figure, axes = grid(1, 2, width=5.0, height=3.8)
    labels = {"gradient": "time of the gradient, evaluations of f", "states": "peak memory of the step, states"}
    for panel, (key, label) in zip(axes[0], labels.items(), strict=True):
        for name, row in results.items():
            panel.plot(row["budgets"], row[key], "o-" if len(row["budgets"]) > 1 else "k*", label=name, markersize=4)
        panel.set_xlabel("K (Implicit, Unrolled) or k (UPG, NPG)")
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
    axes[0, 0].legend()
    return figure


def main() -> None:
    """Print the tables and write the JSON and the figure."""
    parser = options_for("complexity", __doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    print(f"{versions()}; conv map, batch {options.batch}; medians of {options.rounds} rounds\n")
    results = measure(options)
    report(results)
    save(options, {"versions": versions(), "batch": options.batch, "gradients": results}, plot(results))


if __name__ == "__main__":
    main()
