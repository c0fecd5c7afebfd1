"""Solvers and training steps side by side with torchdeq's: time, residual or gradient error, peak memory.

    pip install -e ".[bench]" && OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/peers.py

Tolerance 0, so that all run the whole budget of evaluations of f (torchdeq's Broyden makes one more). Times are medians
of ratios of the process's own time, measured in turn in one run; memory is what was alive at the peak, in states.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from maps import MAPS, SOLVERS, Map
from measure import interleaved, peak_bytes, ratio, versions
from torch import Tensor
from torchdeq import get_deq
from torchdeq.solver.anderson import anderson_solver
from torchdeq.solver.broyden import broyden_solver
from torchdeq.solver.fp_iter import fixed_point_iter

from deq_lightning import GMRES, Anderson, FixedPointIteration, GradientStrategy, Implicit, Solver, Unrolled

THEIRS: dict[str, Callable[..., Any]] = {
    "FixedPointIteration": fixed_point_iter,
    "Anderson(6)": anderson_solver,
    "Broyden(12)": broyden_solver,
}
SCALE = 1e-3  # an equilibrium in other units


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


@torch.no_grad()
def compare_solvers(problem: Map, name: str, steps: int, rounds: int, compile: bool) -> dict[str, float]:
    """Measure one solver on one map."""
    ours, theirs = SOLVERS[name](steps), THEIRS[name]
    actions: dict[str, Callable[[], Tensor]] = {
        "bare": lambda: bare(problem, steps),
        "ours": lambda: ours.solve(problem.f, problem.z0).z,  # type: ignore[dict-item,return-value]
        "theirs": lambda: theirs(problem.f, problem.z0, max_iter=steps, tol=0.0)[0],
    }
    if compile:
        actions["compiled"] = torch.compile(actions["ours"], fullgraph=True)
    times = interleaved(actions, rounds)
    row = {"compiled_time": ratio(times, "compiled", "bare")} if compile else {}
    for side in ("ours", "theirs"):
        reached = residual(problem.f, actions[side]().view_as(problem.z0))
        row |= {
            f"{side}_time": ratio(times, side, "bare"),
            f"{side}_residual": reached.median().item(),
            f"{side}_worst": reached.max().item(),
            f"{side}_states": peak_bytes(actions[side]) / problem.z0.nbytes,
        }
    return row


@torch.no_grad()
def late_residuals(problem: Map, steps: int) -> dict[str, float]:
    """Return median residuals of Anderson after many steps, as it is and with the state in other units."""

    def scaled(z: Tensor) -> Tensor:
        return SCALE * problem.f(z / SCALE)

    ours, theirs = SOLVERS["Anderson(6)"](steps), THEIRS["Anderson(6)"]
    plain = FixedPointIteration(steps, rtol=0).solve(problem.f, problem.z0).z
    answers = {
        "plain": (problem.f, plain),
        "ours": (problem.f, ours.solve(problem.f, problem.z0).z),
        "ours, scaled": (scaled, ours.solve(scaled, problem.z0).z),
        "theirs": (problem.f, theirs(problem.f, problem.z0, max_iter=steps, tol=0.0)[0]),
        "theirs, scaled": (scaled, theirs(scaled, problem.z0, max_iter=steps, tol=0.0)[0]),
    }
    return {name: residual(f, z.view_as(problem.z0)).median().item() for name, (f, z) in answers.items()}  # type: ignore[union-attr]


def gradients(problem: Map, solve: Callable[[], Tensor], g: Tensor) -> Tensor:
    """Return the gradients of <g, z> as one vector."""
    return torch.cat([one.flatten() for one in torch.autograd.grad(solve(), problem.parameters, g)])


def training_steps(problem: Map, steps: int) -> dict[str, Callable[[], Tensor]]:
    """Return the fixed points with their gradients attached, ours and torchdeq's."""

    def ours(solver: Solver, strategy: GradientStrategy) -> Callable[[], Tensor]:
        return lambda: strategy.fixed_point(problem.f, problem.z0, solver)[0]  # type: ignore[return-value]

    def theirs(name: str) -> Callable[[], Tensor]:
        budget = {"f_max_iter": steps, "b_max_iter": steps, "f_tol": 0.0, "b_tol": 0.0}
        deq = get_deq(ift=True, f_solver=name, b_solver=name, **budget).train()
        return lambda: deq(problem.f, problem.z0)[0][-1]

    def implicit(adjoint_solver: Solver) -> Implicit:
        return Implicit(adjoint_solver=adjoint_solver)

    anderson, broyden = SOLVERS["Anderson(6)"](steps), SOLVERS["Broyden(12)"](steps)
    return {
        "Anderson(6), adjoint Anderson(6)": ours(anderson, implicit(anderson)),
        "Anderson(6), adjoint Anderson(5)": ours(anderson, implicit(Anderson(steps, rtol=0, history=5))),
        "Anderson(6), adjoint GMRES(5)": ours(anderson, implicit(GMRES(steps, rtol=0, history=5))),
        "torchdeq anderson, both": theirs("anderson"),
        "Broyden(12), both": ours(broyden, implicit(broyden)),
        "torchdeq broyden, both": theirs("broyden"),
        f"Unrolled({steps})": ours(anderson, Unrolled(unroll_steps=steps)),
    }


def compare_steps(make: Callable[[], Map], steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure training steps: ratios of their times, the error against a converged gradient, peak memory."""
    problem = make()
    g = torch.randn(problem.z0.shape, generator=torch.Generator().manual_seed(1))
    tight = Implicit(adjoint_solver=GMRES(300, rtol=1e-6, history=40))
    exact = gradients(problem, lambda: tight.fixed_point(problem.f, problem.z0, Anderson(300, rtol=1e-6))[0], g)
    solves = training_steps(problem, steps)
    actions = {name: lambda solve=solve: gradients(problem, solve, g) for name, solve in solves.items()}
    times = interleaved(actions, rounds)
    rows = {}
    for name, action in actions.items():
        rows[name] = {
            "error": ((action() - exact).norm() / exact.norm()).item(),
            "states": peak_bytes(action) / problem.z0.nbytes,
        } | {f"time over {base}": ratio(times, name, base) for base in actions if base != name}
    return rows


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="evaluations of f")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS))
    parser.add_argument(
        "--compile", action="store_true", help="time whole solves compiled as one graph, too; minutes each"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/peers.json"))
    options = parser.parse_args()
    print(f"{versions()}; N = {options.steps}; ours / torchdeq's\n")
    print("| map | solver | time / bare | median residual | worst residual | peak states |\n|---|---|---|---|---|---|")
    table: dict[str, Any] = {}
    maps = {name: MAPS[name] for name in options.maps}
    for map_name, make in maps.items():
        for solver in SOLVERS:
            row = compare_solvers(make(), solver, options.steps, options.rounds, options.compile)
            table[f"{map_name} {solver}"] = row
            cells = [f"{row[f'ours_{key}']:.{digits}} / {row[f'theirs_{key}']:.{digits}}" for key, digits in COLUMNS]
            cells += [f"compiled {row['compiled_time']:.2f}"] if options.compile else []
            print(f"| {map_name} | {solver} | {' | '.join(cells)} |", flush=True)
    table["tanh N=50"] = late_residuals(MAPS["tanh"](), 50)
    print("\nmedian residuals, tanh, N = 50:", {name: f"{value:.1e}" for name, value in table["tanh N=50"].items()})
    print(
        "\n| map | training step | time / torchdeq anderson | / torchdeq broyden | / Unrolled | error | peak states |"
    )
    print("|---|---|---|---|---|---|---|")
    for map_name, make in maps.items():
        table[f"{map_name} step"] = rows = compare_steps(make, options.steps, max(options.rounds // 2, 1))
        for name, row in rows.items():
            bases = ("torchdeq anderson, both", "torchdeq broyden, both", f"Unrolled({options.steps})")
            ratios = [f"{row.get(f'time over {base}', 1):.2f}" for base in bases]
            print(
                f"| {map_name} | {name} | {' | '.join(ratios)} | {row['error']:.1e} | {row['states']:.1f} |", flush=True
            )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"versions": versions(), "steps": options.steps, "table": table}, indent=2))


COLUMNS = (("time", "2f"), ("residual", "1e"), ("worst", "1e"), ("states", "0f"))

if __name__ == "__main__":
    main()
