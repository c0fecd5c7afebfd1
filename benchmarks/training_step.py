"""What a whole training step costs with each gradient, beside the least that its evaluations and products cost.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/training_step.py

MDEQ-Tiny as published (batch 8, 32x32 images, Broyden with 22 evaluations, none forgotten) and a transformer block
(`maps.py`; Anderson with 20), tolerance 0. The floor of a strategy makes as many evaluations of f without a graph and
with one, vector-Jacobian products and final backward passes as were counted in its step, with the same layers around
them, and nothing else: no solver's algebra, no histories. Memory is the peak of the whole step.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from figures import grid, options_for, save
from maps import transformer
from matplotlib.figure import Figure
from measure import Counter, interleaved, peak_bytes, ratio, versions
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deq_lightning import GMRES, JFB, MDEQ, NPG, UPG, Anderson, Broyden, Implicit, Solver, Unrolled
from deq_lightning.gradients import GradientStrategy
from deq_lightning.gradients.base import unroll
from deq_lightning.models.layers.frozen import frozen
from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State, parts

BASE = "UPG(5)"  # what `Implicit` is compared with, as in the paper


class Problem(NamedTuple):
    """A model to train: what precedes the equilibrium, how it is solved, and what follows."""

    begin: Callable[[], tuple[FixedPointMap, State]]
    solver: Solver
    adjoints: dict[str, Solver]
    loss: Callable[[State], Tensor]
    parameters: list[Tensor]


def mdeq() -> Problem:
    """Return MDEQ-Tiny on random images."""
    torch.manual_seed(0)
    model, images, labels = MDEQ(), torch.randn(8, 3, 32, 32), torch.randint(10, (8,))

    def begin() -> tuple[FixedPointMap, State]:
        u, clone = model.inject(images), frozen(model)
        return lambda z: clone.cell(z, u), model.initial_state(u)

    def loss(z: State) -> Tensor:
        assert isinstance(z, tuple)
        return F.cross_entropy(model.readout(z), labels)

    adjoints = {"Broyden(22)": Broyden(22, rtol=0), "GMRES(22)": GMRES(22, rtol=0)}
    return Problem(begin, Broyden(22, rtol=0, history=22), adjoints, loss, list(model.parameters()))


def block() -> Problem:
    """Return the transformer block with a random target."""
    f, z0, parameters = transformer()
    target = torch.randn_like(z0)
    adjoints = {"Anderson(20)": Anderson(20, rtol=0, history=6), "GMRES(20)": GMRES(20, rtol=0)}
    forward = Anderson(20, rtol=0, history=6)
    return Problem(lambda: (f, z0), forward, adjoints, lambda z: F.mse_loss(z, target), parameters)  # type: ignore[arg-type]


PROBLEMS = {"MDEQ-Tiny": mdeq, "transformer": block}


def strategies(problem: Problem) -> dict[str, GradientStrategy]:
    """Return the gradients by name."""
    implicit = {f"Implicit, {name}": Implicit(adjoint_solver=solver) for name, solver in problem.adjoints.items()}
    phantom = {BASE: UPG(k=5), "UPG(5), checkpoint": UPG(k=5, checkpoint=True), "NPG(5)": NPG(k=5), "JFB": JFB()}
    return implicit | phantom | {"Unrolled": Unrolled(unroll_steps=problem.solver.max_steps)}


def count(problem: Problem, strategy: GradientStrategy) -> Counter:
    """Count the work of one step."""
    f, z0 = problem.begin()
    counter = Counter(f)
    z, _ = strategy.fixed_point(counter, z0, problem.solver)
    counter.backward = True
    problem.loss(z).backward()
    return counter


def clear(problem: Problem) -> None:
    """Forget the gradients of the last step."""
    for parameter in problem.parameters:
        parameter.grad = None


def train(problem: Problem, strategy: GradientStrategy) -> None:
    """Solve, differentiate, and leave the gradients where the optimizer would look for them."""
    clear(problem)
    f, z0 = problem.begin()
    z, _ = strategy.fixed_point(f, z0, problem.solver)
    problem.loss(z).backward()


def floor(problem: Problem, work: Counter) -> None:
    """Do the work that was counted, and nothing else."""
    clear(problem)
    f, z = problem.begin()
    with torch.no_grad():
        for _ in range(work.bare):
            z = f(z)
    if work.products:
        leaves = tuple(part.detach().requires_grad_() for part in parts(z))
        fz = f(leaves[0] if isinstance(z, Tensor) else leaves)
        for _ in range(work.products):
            torch.autograd.grad(parts(fz), leaves, parts(z), retain_graph=True)
        z = fz
    else:
        z = unroll(partial(checkpoint, f, use_reentrant=False) if work.again else f, z, work.graph)
    problem.loss(z).backward(inputs=problem.parameters)


def measure(problem: Problem, rounds: int) -> dict[str, dict[str, Any]]:
    """Measure every strategy: all steps and floors in turn, then their peaks."""
    state = sum(part.numel() * part.element_size() for part in parts(problem.begin()[1]))
    work = {name: count(problem, strategy) for name, strategy in strategies(problem).items()}
    steps = {name: partial(train, problem, strategy) for name, strategy in strategies(problem).items()}
    floors = {f"{name}, floor": partial(floor, problem, work[name]) for name in steps}
    in_turn = [pair for pairs in zip(steps.items(), floors.items(), strict=True) for pair in pairs]
    times = interleaved(dict(in_turn), rounds)
    rows: dict[str, dict[str, Any]] = {}
    for name, counted in work.items():
        peaks = []
        for action in (steps[name], floors[f"{name}, floor"]):
            clear(problem)
            peaks.append(peak_bytes(action))
        rows[name] = {
            "work": [counted.bare, counted.graph + counted.again, counted.products],
            "milliseconds": 1e3 * median(times[name]),
            "over_floor": ratio(times, name, f"{name}, floor"),
            "over_upg": ratio(times, name, BASE),
            "megabytes": peaks[0] / 1e6,
            "states": peaks[0] / state,
            "floor_states": peaks[1] / state,
        }
    return rows


def report(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print the table of one problem."""
    print(f"\n{name}\n\n| gradient | evaluations, with graph, products | ms | time / floor | time / {BASE} ", end="")
    print("| peak, states (floor) | peak, MB |\n|---|---|---|---|---|---|---|")
    for strategy, row in rows.items():
        work = ", ".join(map(str, row["work"]))
        seconds = f"{row['milliseconds']:.0f} | {row['over_floor']:.2f} | {row['over_upg']:.2f}"
        memory = f"{row['states']:.0f} ({row['floor_states']:.0f}) | {row['megabytes']:.1f}"
        print(f"| {strategy} | {work} | {seconds} | {memory} |", flush=True)


def plot(results: dict[str, dict[str, dict[str, Any]]]) -> Figure:
    """Draw bars of time over the floor and of peak memory, whose floor is a black mark."""
    figure, axes = grid(len(results), 2, width=5.0, height=2.8)
    for row, (name, rows) in enumerate(results.items()):
        for panel, key in zip(axes[row], ("over_floor", "states"), strict=True):
            bars = panel.barh(list(rows), [each[key] for each in rows.values()], color="C0")
            panel.bar_label(bars, fmt="%.2f" if key == "over_floor" else "%.0f", padding=2)
            floors = [1 if key == "over_floor" else each["floor_states"] for each in rows.values()]
            panel.plot(floors, list(rows), "k|", markersize=12, markeredgewidth=2, label="floor")
            panel.set_xlabel("CPU time of a step / floor" if key == "over_floor" else "peak memory, states")
            panel.set_title(name)
            panel.invert_yaxis()
            panel.grid(axis="y", visible=False)
            panel.margins(x=0.12)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    return figure


def main() -> None:
    """Print the tables and write the JSON and the figure."""
    parser = options_for("training_step", __doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(f"{versions()}; medians of {options.rounds} rounds")
    results = {name: measure(make(), options.rounds) for name, make in PROBLEMS.items()}
    for name, rows in results.items():
        report(name, rows)
    save(options, {"versions": versions(), "rounds": options.rounds, "problems": results}, plot(results))


if __name__ == "__main__":
    main()
