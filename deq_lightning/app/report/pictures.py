"""The pictures of a run; each is left out where what it shows was not recorded."""

from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from deq_lightning.app.report.look import COLOURS, panels
from deq_lightning.app.report.reading import Run
from deq_lightning.app.tables import draw_budgets

LAYERS = 4  # of which residuals are drawn


class Picture(NamedTuple):
    """A picture, and what is said of it.

    Attributes:
        name: of its file.
        title: above it.
        caption: what is to be seen.
        figure: the figure.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def pictures_of(run: Run) -> list[Picture]:
    """Return the pictures of a run."""
    drawn = ((name, title, caption, draw(run)) for name, (title, caption, draw) in PICTURES.items())
    return [Picture(name, title, caption, figure) for name, title, caption, figure in drawn if figure is not None]


def learning(run: Run) -> Figure | None:
    """Draw the losses, and the figure that ranks models."""
    losses = {name: run.curve(name) for name in ("train_loss", "val_loss") if run.curve(name)[0]}
    ranked = run.curve(run.monitor)
    if not losses:
        return None
    figure, (first, *second) = panels(2 if ranked[0] and run.monitor != "val_loss" else 1)
    for name, (steps, values) in losses.items():
        first.plot(steps, values, "o-" if len(steps) < 30 else "-", ms=3, label=name.split("_")[0])
    first.set(xlabel="optimizer steps", ylabel="loss")
    if min(min(values) for _, values in losses.values()) > 0:
        first.set_yscale("log")
    first.legend()
    for axes in second:
        axes.plot(*ranked, "o-", ms=3, label="validation")
        tested = run.results.get("test", {}).get(run.ranked)
        if tested is not None:
            axes.axhline(tested, color=COLOURS[1], ls="--", label=f"test, best checkpoint: {tested:.4g}")
        axes.set(xlabel="optimizer steps", ylabel=run.monitor.removeprefix("val_"))
        axes.legend(loc="lower right" if run.results.get("mode") == "max" else "upper right")
    return figure


def residuals(run: Run) -> Figure | None:
    """Draw how the residual falls along a solve, early, in the middle and at the end of the training."""
    curves = run.results.get("residuals", [])
    layers = sorted({curve["layer"] for curve in curves})[:LAYERS]
    if not layers:
        return None
    figure, columns = panels(len(layers))
    for axes, layer in zip(columns, layers, strict=True):
        own = [curve for curve in curves if curve["layer"] == layer]
        for curve in [own[place] for place in sorted({0, len(own) // 2, len(own) - 1})]:
            low, middle, high = ([row[which] for row in curve["residuals"]] for which in range(3))
            evaluations = range(1, len(middle) + 1)
            (line,) = axes.plot(evaluations, _gaps(middle), label=f"epoch {curve['epoch']}, step {curve['step']}")
            axes.fill_between(evaluations, _gaps(low), _gaps(high), color=line.get_color(), alpha=0.2, lw=0)
        axes.set(yscale="log", xlabel="evaluations of the cell", ylabel="relative residual")
        axes.set_title(f"layer {layer + 1}" if len(layers) > 1 else "")
        axes.legend()
    return figure


def steps(run: Run) -> Figure | None:
    """Draw how many samples took how many steps."""
    counted = run.results.get("solver_steps", {})
    splits = [split for split in ("val", "test") if any(counted.get(split, {}).values())]
    if not splits:
        return None
    figure, columns = panels(len(splits))
    for axes, split in zip(columns, splits, strict=True):
        below: dict[int, int] = {}
        for name, colour in (("found", COLOURS[2]), ("not found", COLOURS[1])):
            counts = {int(step): count for step, count in counted[split].get(name, {}).items()}
            if counts:
                bottom = [below.get(step, 0) for step in counts]
                axes.bar(list(counts), list(counts.values()), 0.9, bottom=bottom, color=colour, label=name)
            below.update(counts)
        axes.set(xlabel="solver steps", ylabel="samples")
        axes.set_title({"val": "validation", "test": "test"}[split])
        axes.legend(title="equilibrium")
    return figure


def solving(run: Run) -> Figure | None:
    """Draw the share of equilibria that were found, and the residuals, over the training."""
    shares = _logged(run, ("solver_converged", "val_solver_converged"))
    left_over = _logged(run, ("solver_residual", "val_solver_residual"))
    return _two(
        (shares, "share of equilibria found", {"ylim": (-0.03, 1.03)}),
        (left_over, "relative residual, mean", {"yscale": "log"}),
    )


def contraction(run: Run) -> Figure | None:
    """Draw the spectral radius and the path independence over the training."""
    return _two(
        (_logged(run, ("spectral_radius",)), "spectral radius", {"line": 1.0}),
        (_logged(run, ("path_independence",)), "path independence", {}),
    )


def gradient(run: Run) -> Figure | None:
    """Draw how the gradient compares with the exact one over the training."""
    return _two(
        (_logged(run, ("gradient_cosine",)), "cosine with the exact gradient", {"line": 1.0}),
        (_logged(run, ("gradient_norm_ratio",)), "length, exact = 1", {"line": 1.0}),
    )


def budgets(run: Run) -> Figure | None:
    """Draw what the best checkpoint reaches with more and fewer solver steps."""
    rows, name = run.budgets, run.monitor.replace("val_", "test_", 1)
    if not rows or name not in rows[0]:
        return None
    figure, (axes,) = panels(1)
    draw_budgets(axes, rows, name)
    return figure


PICTURES: dict[str, tuple[str, str, Callable[[Run], Figure | None]]] = {
    "learning": ("Learning", "The loss, and the figure that chooses the best checkpoint.", learning),
    "residuals": (
        "Residual along a solve",
        "‖f(z) − z‖/‖f(z)‖ of the solver's iterates, early, in the middle and late in training, with its budget: the "
        "median of a few samples, and where eight of ten of them lie. A line that goes down straight is a contraction; "
        "one that stays level has found no equilibrium.",
        residuals,
    ),
    "steps": (
        "Steps",
        "How many steps the samples took, of the last validation and of the test. A pile of samples without an "
        "equilibrium at the right end wants a larger budget, or a cell that contracts more.",
        steps,
    ),
    "solving": (
        "Equilibria over the training",
        "The share that was found with the budgets of training and of validation, and the mean residual.",
        solving,
    ),
    "contraction": (
        "Contraction",
        "Below a spectral radius of 1 plain iteration converges near the equilibrium. A path independence of 1 says "
        "that solves from other starts end at the same equilibrium.",
        contraction,
    ),
    "gradient": (
        "The gradient beside the exact one",
        "Of a few samples: the direction and the length of what this strategy gives, compared with the converged "
        "implicit gradient.",
        gradient,
    ),
    "budgets": (
        "Solving longer and shorter",
        "The best checkpoint with other budgets of the solver (`scale`).",
        budgets,
    ),
}


def _logged(run: Run, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: run.curve(name) for name in names if run.curve(name)[0]}


def _two(*wanted: tuple[dict[str, Any], str, dict[str, Any]]) -> Figure | None:
    """Draw each group of curves that has any in a panel of its own."""
    there = [one for one in wanted if one[0]]
    if not there:
        return None
    figure, columns = panels(len(there))
    for axes, (curves, label, options) in zip(columns, there, strict=True):
        for name, (places, values) in curves.items():
            axes.plot(places, values, "o-" if len(places) < 30 else "-", ms=3, label=_split(name))
        line = options.pop("line", None)
        if line is not None:
            axes.axhline(line, color="gray", lw=0.8, ls=":")
        if options.get("yscale") == "log" and min(min(values) for _, values in curves.values()) <= 0:
            options.pop("yscale")
        axes.set(xlabel="optimizer steps", ylabel=label, **options)
        if len(curves) > 1:
            axes.legend()
    return figure


def _split(name: str) -> str:
    return "validation" if name.startswith("val_") else "training"


def _gaps(values: list[float | None]) -> list[float]:
    """Return values for an axis that is logarithmic: nothing is drawn where there is none."""
    return [value if value else float("nan") for value in values]
