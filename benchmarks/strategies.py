"""What each gradient strategy gives, and what it costs, on three problems whose exact gradient is known.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/strategies.py

The problems of `accuracy.py`, forward in float32 with 30 evaluations of Broyden that forgets nothing (`Reversible` is a
solver of its own). Cosine and relative error of the gradient of all parameters, as one vector, against a dense solve in
float64; the vector-Jacobian products of the backward pass; and the memory that the graph holds between forward and
backward, in units of a batch of states. Of a strategy that draws: the cosine of the mean
over 20 draws, and the mean error of a single one.
"""

import gc
import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from accuracy import FORWARD, PROBLEMS, dense, distance, flat, loss
from figures import options_for
from maps import Map
from measure import Counter, versions
from synthetic import in_double, scale_for, solved
from torch import Tensor

from deq_lightning import GMRES, JFB, NPG, SHINE, UPG, Broyden, Implicit, Reversible, RouletteNPG, Unrolled
from deq_lightning.gradients import GradientStrategy

SOLVER = Broyden(FORWARD, rtol=0, history=FORWARD)
DRAWS = 20
STRATEGIES: dict[str, GradientStrategy] = {
    "JFB": JFB(),
    "UPG(5, 0.8)": UPG(k=5, damping=0.8),
    "NPG(5, 0.8)": NPG(k=5, damping=0.8),
    "NPG(rtol 0.1)": NPG(k=100, damping=0.8, rtol=0.1),
    "NPG(rtol 0.01)": NPG(k=100, damping=0.8, rtol=0.01),
    "RouletteNPG(5, 0.7)": RouletteNPG(k=5, p=0.7, damping=0.8),
    "SHINE": SHINE(),
    "Implicit, 3 products, inverse reused": Implicit(adjoint_solver=GMRES(max_steps=3, rtol=0), reuse_inverse=True),
    "Reversible(8)": Reversible(steps=8),
    "Reversible(32)": Reversible(steps=32),
    "Unrolled(16)": Unrolled(unroll_steps=16),
    "Implicit": Implicit(),
}


def living() -> dict[int, int]:
    """Return the size of every tensor that Python knows, by its place."""
    gc.collect()
    storages = (one.untyped_storage() for one in gc.get_objects() if isinstance(one, Tensor))
    return {one.data_ptr(): one.nbytes() for one in storages}


def gradient(problem: Map, strategy: GradientStrategy) -> tuple[Tensor, int, float]:
    """Return the gradient, the products that it took, and the states that were held for it."""
    counter, held, before = Counter(problem.f), dict[int, int](), living()

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        value = loss(strategy.fixed_point(counter, problem.z0, SOLVER)[0])
        held |= living()
        memory = sum(size for place, size in held.items() if place not in before)
        memory /= problem.z0.untyped_storage().nbytes()
        found = torch.autograd.grad(value, problem.parameters)
    return flat(found), counter.products, memory


def row(problem: Map, strategy: GradientStrategy, reference: Tensor) -> dict[str, float]:
    """Return the figures of a strategy."""
    torch.manual_seed(0)
    draws = [gradient(problem, strategy) for _ in range(DRAWS if isinstance(strategy, RouletteNPG) else 1)]
    every = [one for one, _, _ in draws]
    mean = torch.stack(every).mean(dim=0)
    return {
        "cosine": torch.cosine_similarity(mean, reference, dim=0).item(),
        "error": distance(mean, reference),
        "error of one": fmean(distance(one, reference) for one in every),
        "products": fmean(products for _, products, _ in draws),
        "states held": draws[0][2],
    }


def print_table(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print a row for each strategy: cosine, error and products on each problem, and the memory on the last."""
    print(f"\n| | {' | '.join(f'{name}: cosine, error, products' for name in results)} | states held |")
    print(f"|{'---|' * (len(results) + 2)}")
    for name in STRATEGIES:
        rows: Sequence[dict[str, float]] = [result[name] for result in results.values()]
        cells = [f"{one['cosine']:.4f}, {one['error of one']:.1e}, {one['products']:.3g}" for one in rows]
        print(f"| {name} | {' | '.join(cells)} | {rows[-1]['states held']:.0f} |")


def main() -> None:
    """Print the table and write the JSON."""
    options = options_for("strategies", __doc__).parse_args()
    print(versions())
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name, problem in PROBLEMS.items():
        scale = scale_for(problem.make, problem.radius, *problem.bracket)
        single, double = problem.make(scale), in_double(problem.make, scale)
        reference = dense(double, solved(double))
        results[name] = {each: row(single, strategy, reference) for each, strategy in STRATEGIES.items()}
    print_table(results)
    options.json.write_text(json.dumps({"versions": versions(), "problems": results}, indent=1))


if __name__ == "__main__":
    main()
