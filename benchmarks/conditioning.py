"""Backward solvers as the equilibrium grows ill-conditioned: Geng et al. 2021, Appendix D.4, Fig. 4.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/conditioning.py

The layer of Appendix D.1 at four Lipschitz constants, 100 forward iterations each, solved or not. Every method then
estimates w = (I − Jᵀ)⁻¹ g at that state for the same g = ∂L/∂h; after k iterations it has made k − 1 vector-Jacobian
products (UPG: k evaluations). "Broyden, iterates" are the points at which the solver evaluates the map, "returned" is
what `Implicit` gets from it: the iterate of lowest residual relative to ‖g‖. The linear layer (default) attains the
Lipschitz constant; tanh does not, by how much the scale of u (--std) decides: see the Jacobian's radius printed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from figures import grid, options_for, save
from matplotlib.figure import Figure
from measure import versions
from synthetic import ACTIVATIONS, Layer, draw, symmetric_weight
from torch import Tensor

from deq_lightning import GMRES, NPG, UPG, Broyden, FixedPointIteration, Implicit
from deq_lightning.gradients import GradientStrategy

LIPSCHITZ = (0.9, 0.99, 0.999, 0.9999)
ITERATIONS = 100
BUDGETS = (*range(1, 20), *range(20, ITERATIONS + 1, 5))  # every budget is a run of its own, unlike the raw iterates
SHOWN = (5, 10, 20, 50, 100)
METRICS = {
    "objective": "‖(I − Jᵀ) w − g‖",
    "relative": "‖(I − Jᵀ) w − g‖ / ‖w‖",
    "error": "‖w − w*‖ / ‖w*‖",
    "cosine": "cosine of w and w*",
    "l1": "‖w‖₁",
}
METHODS: dict[str, Callable[[int], GradientStrategy]] = {
    "Broyden, returned": lambda k: Implicit(adjoint_solver=Broyden(k, rtol=0, history=k)),
    "GMRES, returned": lambda k: Implicit(adjoint_solver=GMRES(k, rtol=0, history=k)),
    "NPG, λ = 1 (fixed-point iteration)": lambda k: NPG(k=k, damping=1),
    "NPG, λ = 0.5": lambda k: NPG(k=k, damping=0.5),
    "UPG, λ = 0.5": lambda k: UPG(k=k, damping=0.5),
}
RAW = "Broyden, iterates"
LINES = dict(zip((RAW, *METHODS), ("C3-", "C4-", "C0-", "C1-", "C2-", "k:"), strict=True))


def budgets(name: str) -> Sequence[int]:
    """Return the iterations at which there is an estimate of this name."""
    return range(1, ITERATIONS + 1) if name == RAW else BUDGETS


def adjoint(strategy: GradientStrategy, layer: Layer, h: Tensor, g: Tensor) -> Tensor:
    """Return the strategy's estimate of w: the gradient of something added to the layer's output."""
    shift = torch.zeros_like(h, requires_grad=True)
    z = strategy.attach(lambda z: layer(z) + shift, h)
    assert isinstance(z, Tensor)
    return torch.autograd.grad(z, shift, g)[0]


def broyden_iterates(layer: Layer, h: Tensor, g: Tensor) -> Tensor:
    """Return the points at which Broyden's method evaluates the map: `solve` itself would return only the best."""
    point = h.clone().requires_grad_()
    value = layer(point)
    seen: list[Tensor] = []

    def affine(w: Tensor) -> Tensor:
        seen.append(w)
        return torch.autograd.grad(value, point, w, retain_graph=True)[0] + g

    Broyden(ITERATIONS, rtol=0, history=ITERATIONS).solve(affine, g)
    return torch.stack(seen)


def judge(w: Tensor, exact: Tensor, residual: Tensor) -> dict[str, Tensor]:
    """Return the metrics of (iteration, ..., dim) estimates with their residuals (I − Jᵀ) w − g."""
    objective = residual.norm(dim=-1)
    return {
        "objective": objective,
        "relative": objective / w.norm(dim=-1),
        "error": (w - exact).norm(dim=-1) / exact.norm(dim=-1),
        "cosine": torch.cosine_similarity(w, exact.expand_as(w), dim=-1),
        "l1": w.abs().sum(-1),
        "objective_growth": objective / objective[0],
        "l1_ratio": w.abs().sum(-1) / exact.abs().sum(-1),
    }


def summarise(w: Tensor, exact: Tensor, jacobians: Tensor, g: Tensor) -> dict[str, dict[str, list[float]]]:
    """Judge (iteration, pair, dim) estimates in float64: the batch as one vector, and the extremes of its pairs."""
    w = w.double()
    residual = w - torch.einsum("pij,kpi->kpj", jacobians, w) - g
    batch = judge(w.flatten(1), exact.flatten(), residual.flatten(1))
    pairs = judge(w, exact, residual)
    return {
        key: {"batch": batch[key].tolist(), "low": pairs[key].amin(1).tolist(), "high": pairs[key].amax(1).tolist()}
        for key in batch
    }


def measure(layer: Layer) -> dict[str, Any]:
    """Run every method at every budget on one layer; judge it by the dense solution."""
    solution = FixedPointIteration(ITERATIONS, rtol=0).solve(layer, layer.start)
    h = solution.z
    assert isinstance(h, Tensor)
    leaf = h.clone().requires_grad_()
    g = torch.autograd.grad(layer.loss(leaf), leaf)[0]
    jacobians = layer.jacobians(h)
    identity = torch.eye(h.shape[1], dtype=torch.float64)
    exact = torch.linalg.solve(identity - jacobians.mT, g.double()[..., None])[..., 0]
    estimates = {RAW: broyden_iterates(layer, h, g)}
    for name, make in METHODS.items():
        estimates[name] = torch.stack([adjoint(make(k), layer, h, g) for k in BUDGETS])
    return {
        "residual": solution.residual.median().item(),
        "radius": torch.linalg.eigvals(jacobians).abs().amax(dim=1).median().item(),
        "exact_l1": exact.abs().sum().item(),
        "methods": {name: summarise(w, exact, jacobians, g.double()) for name, w in estimates.items()},
    }


def report(lipschitz: float, result: dict[str, Any]) -> None:
    """Print the rows of one Lipschitz constant: cosines on the way, and the extremes of objective and norm."""
    for name, rows in result["methods"].items():
        at = [budgets(name).index(k) for k in SHOWN]
        cosines = [(rows["cosine"]["batch"][i], rows["cosine"]["low"][i]) for i in at]
        cells = " | ".join(f"{batch:.3f} ({low:.2f})" for batch, low in cosines)
        growth, norm = (max(rows[key]["high"]) for key in ("objective_growth", "l1_ratio"))
        error = rows["error"]["batch"][-1]
        print(f"| {lipschitz} | {name} | {cells} | {growth:.2g} | {norm:.2g} | {error:.1e} |")


def draw_figure(results: dict[float, dict[str, Any]]) -> Figure:
    """Draw a row per metric and a column per Lipschitz constant: of the batch as one vector."""
    figure, axes = grid(len(METRICS), len(results), width=3.8, height=2.5)
    for column, (lipschitz, result) in enumerate(results.items()):
        axes[0, column].set_title(f"L = {lipschitz} (radius {result['radius']:.4f})")
        axes[-1, column].set_xlabel("iterations")
        axes[-1, column].axhline(result["exact_l1"], color="grey", linestyle="--", label="exact")
        for row, (key, label) in enumerate(METRICS.items()):
            axes[row, column].set_yscale("linear" if key == "cosine" else "log")
            axes[row, 0].set_ylabel(label)
            for name, line in LINES.items():
                values = result["methods"][name][key]["batch"]
                axes[row, column].plot(budgets(name), values, line, label=name)
    figure.legend(*axes[-1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def drawn(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the figure shows of one Lipschitz constant, to three significant digits."""
    methods = result["methods"].items()
    lines = {name: {key: [float(f"{y:.3g}") for y in rows[key]["batch"]] for key in METRICS} for name, rows in methods}
    return result | {"methods": lines}


def main() -> None:
    """Print the table and write the JSON and the figure."""
    parser = options_for("conditioning", __doc__)
    parser.add_argument("--activation", choices=ACTIVATIONS, default="linear")
    parser.add_argument("--std", type=float, default=1.0, help="standard deviation of u")
    options = parser.parse_args()
    print(f"{versions()}; {options.activation} layer, u of standard deviation {options.std}")
    print("cosines: batch (lowest pair); growth and ‖w‖₁: highest of any pair at any iteration, relative to its first")
    print(f"objective and its exact gradient; error: ‖w − w*‖ / ‖w*‖ of the batch at iteration {ITERATIONS}")
    results: dict[float, dict[str, Any]] = {}
    for lipschitz in LIPSCHITZ:
        result = measure(draw(symmetric_weight(lipschitz), options.activation, seed=1, std=options.std))
        results[lipschitz] = result
        print(f"\nL = {lipschitz}: Jacobian radius {result['radius']:.4f}, forward residual {result['residual']:.1e}\n")
        columns = [f"cos, k = {k}" for k in SHOWN] + ["objective growth", "‖w‖₁ / exact", "error"]
        print(f"| L | backward | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
        report(lipschitz, result)
    header = {"versions": versions(), "activation": options.activation, "std": options.std, "budgets": BUDGETS}
    rounded = {lipschitz: drawn(result) for lipschitz, result in results.items()}
    save(options, header | {"lipschitz": rounded}, draw_figure(results))


if __name__ == "__main__":
    main()
