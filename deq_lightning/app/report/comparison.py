"""The pictures of a comparison."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from deq_lightning.app.report.look import COLOURS, panels
from deq_lightning.app.report.pictures import Picture
from deq_lightning.app.report.reading import Run, title_of
from deq_lightning.app.tables import called

Kinds = Mapping[str, Sequence[Run]]  # the runs of each kind of setting
TALL = 3.2  # inches of a picture


def pictures_of(table: Mapping[str, Any], kinds: Kinds) -> list[Picture]:
    """Return the pictures of a comparison.

    Args:
        table: its rows.
        kinds: its runs.
    """
    every = [run for runs in kinds.values() for run in runs]
    if not every:
        return []
    figure = every[0].ranked
    label = called(figure)
    pictures = []
    if all("seconds" in run.results for run in every):
        pictures.append(Picture("cost", f"{label} over time", COST, _cost(kinds, figure, label)))
    for axis in _numeric(table["rows"]):
        drawn = _over(axis, table["rows"], figure, label)
        pictures.append(Picture(f"over_{axis}", f"{label} over {axis.rpartition('.')[2]}", OVER, drawn))
    learning = _learning(kinds)
    if learning is not None:
        pictures.append(Picture("learning", "Learning", LEARNING, learning))
    return pictures


COST = (
    "A mark for each setting: the mean over its runs, and the deviation in both directions. Time is that of training."
)
OVER = "The mean over the runs of each setting, and the deviation."
LEARNING = "The figure of the validation that chooses the best checkpoint, the mean over the runs of each setting."


def _cost(kinds: Kinds, figure: str, label: str) -> Figure:
    drawn, (axes,) = panels(1, height=TALL)
    for number, (title, runs) in enumerate(kinds.items()):
        reached = [(run.results["seconds"], run.reached.get(figure)) for run in runs]
        seconds, values = zip(*[pair for pair in reached if pair[1] is not None] or [((), ())], strict=True)
        if values:
            place = _mean(seconds), _mean(values)
            colour = COLOURS[number % len(COLOURS)]
            axes.errorbar(*place, _spread(values), _spread(seconds), "o", ms=5, capsize=2, color=colour, label=title)
    axes.set(xlabel="seconds", ylabel=label)
    _name_lines(axes)
    return drawn


def _numeric(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the flags that were varied and whose values are numbers."""
    return [axis for axis in _flags(rows) if _all_numbers(rows, axis)]


def _flags(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the flags that were varied; they stand before the number of runs."""
    if not rows:
        return []
    names = list(rows[0])
    return names[: names.index("runs")]


def _all_numbers(rows: Sequence[Mapping[str, Any]], axis: str) -> bool:
    try:
        return len({float(row[axis]) for row in rows}) > 1
    except (KeyError, ValueError):
        return False


def _over(axis: str, rows: Sequence[Mapping[str, Any]], figure: str, label: str) -> Figure:
    """Draw a figure over the values of a flag, a line for each setting of the others."""
    drawn, (axes,) = panels(1, height=TALL)
    others = [flag for flag in _flags(rows) if flag != axis]
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row.get(figure) is not None:
            place = float(row[axis]), row[figure], row.get(f"{figure}_std") or 0.0
            lines.setdefault(title_of({flag: row[flag] for flag in others}), []).append(place)
    for title, places in lines.items():
        values, means, spreads = zip(*sorted(places), strict=True)
        axes.errorbar(values, means, spreads, fmt="o-", ms=4, capsize=2, label=title)
    axes.set(xlabel=axis.rpartition(".")[2], ylabel=label)
    if others:
        _name_lines(axes)
    return drawn


def _learning(kinds: Kinds) -> Figure | None:
    """Draw the validation's figure over the training, its mean over the runs of each kind."""
    drawn, (axes,) = panels(1, height=TALL)
    for title, runs in kinds.items():
        curves = [run.curve(run.monitor) for run in runs if run.curve(run.monitor)[0]]
        if curves:
            length = min(len(steps) for steps, _ in curves)
            means = [_mean([values[place] for _, values in curves]) for place in range(length)]
            axes.plot(curves[0][0][:length], means, "o-", ms=3, label=title)
    if not axes.lines:
        return None
    axes.set(xlabel="optimizer steps", ylabel=next(iter(kinds.values()))[0].monitor.removeprefix("val_"))
    _name_lines(axes)
    return drawn


def _name_lines(axes: Any) -> None:
    """Say above the picture which line is which: there may be many."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
