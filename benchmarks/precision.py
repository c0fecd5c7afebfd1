"""How far phantom gradients point from the exact one: Geng et al. 2021, Section 3, Fig. 1 and Appendix D.1.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/precision.py

Lipschitz constant 0.9, gradients of the mean squared error with respect to u. The exact gradient is backpropagation
through 100 fixed-point iterations, cross-validated by implicit differentiation with 20 Broyden iterations. Cosines are
taken pair by pair, (u, y); the paper draws 50000 pairs (here: --draws 1563). UPG and NPG start at the solver's fixed
point, so they differ only by its error.
"""

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import torch
from figures import grid, options_for, save
from matplotlib.axes import Axes
from measure import versions
from synthetic import ACTIVATIONS, PAIRS, Layer, draw, symmetric_weight
from torch import Tensor

from deq_lightning import NPG, UPG, Broyden, FixedPointIteration, Implicit, Unrolled
from deq_lightning.gradients import GradientStrategy
from deq_lightning.state import State

LIPSCHITZ = 0.9
ITERATIONS = 100
STEPS = tuple(range(1, 21))
DAMPINGS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
SHOWN = (1, 2, 3, 5, 10, 20)
ROUNDING = 1e-6  # of a float32 cosine
PHANTOMS: dict[str, Callable[[int, float], GradientStrategy]] = {
    "UPG": lambda k, damping: UPG(k=k, damping=damping),
    "NPG": lambda k, damping: NPG(k=k, damping=damping),
}


def gradient(layer: Layer, h: State) -> Tensor:
    """Return the gradient of the loss with respect to u, along the graph of h."""
    assert isinstance(h, Tensor)
    return torch.autograd.grad(layer.loss(h), layer.u)[0]


def cosines(layer: Layer) -> dict[str, Tensor]:
    """Return each pair's cosines with the exact gradient, the solver's residual and the Jacobian's radius."""
    solver = FixedPointIteration(ITERATIONS, rtol=0)
    solution = solver.solve(layer, layer.start)
    h = solution.z
    assert isinstance(h, Tensor)
    exact = gradient(layer, Unrolled(unroll_steps=ITERATIONS).fixed_point(layer, layer.start, solver)[0])
    implicit = gradient(layer, Implicit(adjoint_solver=Broyden(20, rtol=0, history=20)).attach(layer, h))
    phantom = {
        name: torch.stack(
            [
                torch.stack(
                    [torch.cosine_similarity(gradient(layer, make(k, damping).attach(layer, h)), exact) for k in STEPS]
                )
                for damping in DAMPINGS
            ]
        )
        for name, make in PHANTOMS.items()
    }
    radius = torch.linalg.eigvals(layer.jacobians(h)[:1]).abs().amax(dim=1)  # one pair a batch: it costs the most
    checks = {"residual": solution.residual, "implicit": torch.cosine_similarity(implicit, exact), "radius": radius}
    return checks | phantom


def summarise(values: Tensor) -> dict[str, list[list[float]]]:
    """Reduce (damping, step, pair) cosines to their mean and 5th and 95th percentiles."""
    low, high = torch.quantile(values.double(), torch.tensor([0.05, 0.95], dtype=torch.float64), dim=-1)
    return {"mean": values.double().mean(-1).tolist(), "p5": low.tolist(), "p95": high.tolist()}


def measure(activation: str, draws: int) -> dict[str, Any]:
    """Gather the cosines over the draws, and check the two references against what the paper demands of them."""
    weight = symmetric_weight(LIPSCHITZ)
    batches = [cosines(draw(weight, activation, seed)) for seed in range(draws)]
    gathered = {key: torch.cat([batch[key] for batch in batches], dim=-1) for key in batches[0]}
    checks = {
        "residual": gathered["residual"].max().item(),
        "implicit": gathered["implicit"].min().item(),
        "radius": gathered["radius"].median().item(),
        "upg_npg": (gathered["UPG"] - gathered["NPG"]).abs().max().item(),
    }
    assert checks["residual"] < 1e-5, "The fixed point is not the paper's: its relative error is 1e-5 or more."
    assert checks["implicit"] > 0.9999, "The two exact gradients disagree."
    return checks | {name: summarise(gathered[name]) for name in PHANTOMS}


def report(activation: str, result: dict[str, Any]) -> None:
    """Print the checks, the rows of the table, and whether the paper's two statements hold for the means."""
    print(f"\n{activation}: worst relative error of the fixed point {result['residual']:.1e}", end="; ")
    print(f"lowest cosine of backpropagation with implicit differentiation {result['implicit']:.7f}", end="; ")
    print(f"median Jacobian radius {result['radius']:.3f}; UPG and NPG differ by at most {result['upg_npg']:.1e}\n")
    print(f"| layer | gradient | λ | {' | '.join(f'k = {k}' for k in SHOWN)} |\n|---|---|---|{'---|' * len(SHOWN)}")
    for name in PHANTOMS:
        mean, low, high = (torch.tensor(result[name][key], dtype=torch.float64) for key in ("mean", "p5", "p95"))
        for row, damping in enumerate(DAMPINGS):
            at = [(row, STEPS.index(k)) for k in SHOWN]
            cells = " | ".join(f"{mean[i]:.4f} ({low[i]:.3f}–{high[i]:.3f})" for i in at)
            print(f"| {activation} | {name} | {damping} | {cells} |")
    for name in PHANTOMS:
        mean = torch.tensor(result[name]["mean"], dtype=torch.float64)
        grows, slower = ((mean.diff(dim=dim) > -ROUNDING).all().item() for dim in (1, 0))
        print(f"\n{activation} {name}: the mean cosine grows with k for every λ: {grows}", end="; ")
        print(f"at every k it is the lower the smaller λ is: {slower}", end="")
    print()


def plot(axes: Axes, summary: dict[str, list[list[float]]]) -> None:
    """Draw one line per damping, with the band from the 5th to the 95th percentile."""
    colours = mpl.colormaps["viridis"].resampled(len(DAMPINGS) + 1)
    for row, damping in enumerate(DAMPINGS):
        axes.plot(STEPS, summary["mean"][row], ".-", color=colours(row), label=f"λ = {damping}")
        axes.fill_between(STEPS, summary["p5"][row], summary["p95"][row], color=colours(row), alpha=0.15, linewidth=0)
    axes.set_ylim(0.8, 1.005)
    axes.set_xticks(STEPS[::2])
    axes.set_xlabel("k")
    axes.set_ylabel("cosine with the exact gradient")


def main() -> None:
    """Print the table and write the JSON and the figure."""
    parser = options_for("precision", __doc__)
    parser.add_argument("--draws", type=int, default=50, help=f"batches of {PAIRS} pairs")
    options = parser.parse_args()
    print(f"{versions()}; {options.draws * PAIRS} pairs; mean (5th–95th percentile) over them")
    results = {activation: measure(activation, options.draws) for activation in ACTIVATIONS}
    figure, axes = grid(len(ACTIVATIONS), len(PHANTOMS))
    for row, (activation, result) in enumerate(results.items()):
        report(activation, result)
        for column, name in enumerate(PHANTOMS):
            plot(axes[row, column], result[name])
            axes[row, column].set_title(f"{name}, {activation} layer (Jacobian radius {result['radius']:.2f})")
    axes[0, 0].legend()
    header = {"versions": versions(), "pairs": options.draws * PAIRS, "steps": STEPS, "dampings": DAMPINGS}
    save(options, header | {"layers": results}, figure)


if __name__ == "__main__":
    main()
