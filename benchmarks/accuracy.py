"""Error of the implicit gradient by vector-Jacobian products spent, beside the best that peers reach with as many.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/accuracy.py

Three problems whose scale gives the Jacobian at the fixed points the stated spectral radius (the largest of the
samples). Forward in float32 with 30 evaluations; backward with tolerance 0 and all directions remembered, but for GMRES
as it is by default. The reference is the dense solve in float64 at the exact fixed point; "limit" is the error of the
dense solve at the state that the forward solver found, which is what an exact adjoint leaves. Errors are of all
parameters as one vector. The peers' figures are of problems of the same radius, not of these very weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from figures import grid, options_for, save
from maps import Map, conv
from matplotlib.figure import Figure
from measure import Counter, versions
from synthetic import dense_tanh, in_double, jacobians, radius, scale_for, solved
from torch import Tensor

from deq_lightning import GMRES, JFB, Anderson, Broyden, FixedPointIteration, Implicit, Solver
from deq_lightning.gradients import GradientStrategy
from deq_lightning.state import State

BATCH, FORWARD = 16, 30
BUDGETS = (1, 2, 3, 4, 5, 6, 10, 11, 20, 30)
FORWARDS: dict[str, Solver] = {
    "Broyden": Broyden(FORWARD, rtol=0, history=FORWARD),
    "Anderson": Anderson(FORWARD, rtol=0),
}
ADJOINTS: dict[str, Callable[[int], Solver]] = {
    "GMRES": lambda n: GMRES(n, rtol=0, history=n),
    "GMRES, default history": lambda n: GMRES(n, rtol=0),
    "Anderson": lambda n: Anderson(n, rtol=0, history=n),
    "Broyden": lambda n: Broyden(n, rtol=0, history=n),
    "FixedPointIteration": lambda n: FixedPointIteration(n, rtol=0),
}
REUSED = "GMRES, inverse reused"  # of the forward solver, where that is Broyden


@dataclass(frozen=True)
class Problem:
    """A map by its scale, where to look for that, the radius wanted, and peers' products, best errors and methods."""

    make: Callable[[float], Map]
    bracket: tuple[float, float]
    radius: float
    peers: str


PROBLEMS = {
    "tanh easy": Problem(
        partial(dense_tanh, injection=0.5, batch=BATCH),
        (0.1, 3.0),
        0.54,
        "0 4.5e-1 JFB, 4 1.9e-2 UPG(5), 5 1.8e-2 GMRES, 10 2.8e-4 GMRES, 20 3.2e-7 GMRES",
    ),
    "tanh hard": Problem(
        partial(dense_tanh, injection=0.2, batch=BATCH),
        (0.1, 3.0),
        0.94,
        "0 8.4e-1 JFB, 4 1.9e-1 SHINE+3, 6 8.3e-2 SHINE+5, 11 6.6e-3 SHINE+10, 30 3.1e-4 Broyden",
    ),
    "conv-small": Problem(
        lambda std: conv(8, 6, BATCH, std),
        (0.01, 0.2),
        0.95,
        "0 8.5e-1 JFB, 4 4.6e-1 SHINE+3, 5 2.5e-1 GMRES, 10 6.5e-2 GMRES, 20 3.8e-2 GMRES, 30 4.4e-3 Broyden",
    ),
}


def loss(z: State) -> Tensor:
    """Return the mean squared error to a fixed random target."""
    assert isinstance(z, Tensor)
    target = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    return F.mse_loss(z, target.to(z.dtype))


def flat(gradients: Iterable[Tensor]) -> Tensor:
    """Return the gradients as one vector in float64."""
    return torch.cat([one.flatten().double() for one in gradients])


def distance(gradient: Tensor, reference: Tensor) -> float:
    """Return the relative error."""
    return ((gradient - reference).norm() / reference.norm()).item()


def dense(double: Map, z: Tensor) -> Tensor:
    """Return the gradient at z by a dense solve of (I − Jᵀ) w = g."""
    leaf = z.clone().requires_grad_()
    g = torch.autograd.grad(loss(leaf), leaf)[0].flatten(1)
    system = torch.eye(g.shape[1], dtype=g.dtype) - jacobians(double, z).mT
    w = torch.linalg.solve(system, g[..., None]).view_as(z)
    return flat(torch.autograd.grad(double.f(z), double.parameters, w))


def judge(
    problem: Map, solver: Solver, strategy: GradientStrategy, reference: Tensor, products: int
) -> dict[str, float]:
    """Return cosine and relative error of a strategy that must spend so many products."""
    counter = Counter(problem.f)
    gradient = flat(torch.autograd.grad(loss(strategy.fixed_point(counter, problem.z0, solver)[0]), problem.parameters))
    assert counter.products == products, f"{counter.products} products instead of {products}"
    cosine = torch.cosine_similarity(gradient, reference, dim=0).item()
    return {"cosine": cosine, "error": distance(gradient, reference)}


def measure(problem: Problem) -> dict[str, Any]:
    """Measure all adjoint solvers at all budgets, after either forward solver."""
    scale = scale_for(problem.make, problem.radius, *problem.bracket)
    single, double = problem.make(scale), in_double(problem.make, scale)
    reference = dense(double, solved(double))
    result: dict[str, Any] = {"scale": scale, "radius": radius(problem.make, scale), "forward": {}}
    for name, solver in FORWARDS.items():
        solution = solver.solve(single.f, single.z0)
        assert isinstance(solution.z, Tensor)
        limit = distance(dense(double, solution.z.double()), reference)
        adjoints = {each: {n: Implicit(adjoint_solver=make(n)) for n in BUDGETS} for each, make in ADJOINTS.items()}
        if isinstance(solver, Broyden):
            gmres = ADJOINTS["GMRES"]
            adjoints[REUSED] = {n: Implicit(adjoint_solver=gmres(n), reuse_inverse=True) for n in BUDGETS}
        rows = {"JFB": {0: judge(single, solver, JFB(), reference, 0)}}
        for each, strategies in adjoints.items():
            rows[each] = {n: judge(single, solver, strategy, reference, n) for n, strategy in strategies.items()}
        result["forward"][name] = {
            "residual": solution.residual.median().item(),
            "worst": solution.residual.max().item(),
            "limit": limit,
            "adjoints": rows,
        }
    return result


def best_of_peers(problem: Problem, products: int) -> tuple[float, str]:
    """Return the lowest error known of peers that spend no more products."""
    rows = [row.split() for row in problem.peers.split(", ")]
    return min((float(error), who) for spent, error, who in rows if int(spent) <= products)


def report(name: str, result: dict[str, Any]) -> None:
    """Print the errors of one problem by products."""
    problem = PROBLEMS[name]
    for forward, each in result["forward"].items():
        rows = each["adjoints"]
        jfb = rows["JFB"][0]
        print(f"\n{name}: radius {result['radius']:.3f}, scale {result['scale']:.3f}; forward {forward}, ", end="")
        print(f"residual {each['residual']:.1e} (worst {each['worst']:.1e}), limit {each['limit']:.1e}; ", end="")
        print(f"JFB: cosine {jfb['cosine']:.3f}, error {jfb['error']:.1e}\n")
        adjoints = [adjoint for adjoint in rows if adjoint != "JFB"]
        print(f"| products | {' | '.join(adjoints)} | best of peers | |\n|---|{'---|' * (len(adjoints) + 2)}")
        for n in BUDGETS:
            peer, who = best_of_peers(problem, n)
            cells = " | ".join(f"{rows[adjoint][n]['error']:.1e}" for adjoint in adjoints)
            print(f"| {n} | {cells} | {peer:.1e} | {who} |")


def plot(results: dict[str, dict[str, Any]]) -> Figure:
    """Draw the error over the products: a row per forward solver, a column per problem."""
    figure, axes = grid(len(FORWARDS), len(results), width=3.8, height=3.0)
    for column, (name, result) in enumerate(results.items()):
        for row, (forward, each) in enumerate(result["forward"].items()):
            panel, rows = axes[row, column], each["adjoints"]
            for adjoint in [adjoint for adjoint in rows if adjoint != "JFB"]:
                panel.semilogy(BUDGETS, [rows[adjoint][n]["error"] for n in BUDGETS], ".-", label=adjoint)
            panel.plot(0, rows["JFB"][0]["error"], "k*", label="JFB")
            peers = [best_of_peers(PROBLEMS[name], n)[0] for n in (0, *BUDGETS)]
            panel.axhline(each["limit"], color="grey", linestyle=":", label="limit")
            panel.step((0, *BUDGETS), peers, "k--", where="post", label="best of peers")
            panel.set_title(f"{name} (radius {result['radius']:.2f}), forward {forward}")
            panel.set_xlabel("vector-Jacobian products")
            axes[row, 0].set_ylabel("relative error of the gradient")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


def main() -> None:
    """Print the tables and write the JSON and the figure."""
    options = options_for("accuracy", __doc__).parse_args()
    print(f"{versions()}; relative errors")
    results: dict[str, dict[str, Any]] = {}
    for name, problem in PROBLEMS.items():
        results[name] = measure(problem)
        report(name, results[name])
    save(options, {"versions": versions(), "problems": results}, plot(results))


if __name__ == "__main__":
    main()
