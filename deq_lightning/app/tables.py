"""Results as a table on the screen, as files, and as a picture."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from deq_lightning.app.runs import from_here, say
from deq_lightning.files import replacing

Row = dict[str, Any]

WIDTH = 160  # of what goes to a file or a pipe


@rank_zero_only
def show(rows: list[Row], protocol: Row) -> None:
    """Print rows as a table, in the order of their columns, with what all of them share above it."""
    from rich.console import Console
    from rich.table import Table

    say(
        ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in protocol.items()
        )
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        table.add_column(
            name.removeprefix("test_").replace("_", "\n"), justify="right", no_wrap=True, vertical="bottom"
        )
    before = None
    for row in rows:
        table.add_section() if before is not None and row.get("set") != before else None
        before = row.get("set")
        table.add_row(*(_short(row.get(name)) for name in columns))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


@rank_zero_only
def show_line(rows: list[Row]) -> None:
    """Print the least-squares line through the steps taken with the largest budget, over the size of the test sets.

    Sets with samples that did not stop by themselves are left out: how many steps those would take is not known.
    """
    last = {int(row["set"]): row for row in rows if str(row.get("set", "")).isdecimal()}
    steps = {size: row["test_solver_steps"] for size, row in last.items() if _stopped(row)}
    if len(steps) > 1:
        slope, first = np.polyfit(list(steps), list(steps.values()), deg=1)
        say(f"solver steps: {first:.3g} + {slope:.3g} x size")


def _stopped(row: Row) -> bool:
    """Say whether all samples of a row stopped by themselves."""
    return row.get("test_solver_converged") == 1


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@rank_zero_only
def write(path: Path, rows: list[Row], protocol: Row) -> None:
    """Write the rows as CSV and as JSON, which has the protocol too; existing files are replaced.

    Args:
        path: of the files, without an ending.
        rows: the rows.
        protocol: what all of them share.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path.with_name(f"{path.name}.csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    plain = [{name: value if _is_finite(value) else None for name, value in row.items()} for row in rows]
    with replacing(path.with_name(f"{path.name}.json"), "w") as file:
        file.write(json.dumps({**protocol, "rows": plain}, indent=2) + "\n")
    say(f"results: {from_here(path)}.csv, {path.name}.json")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


@rank_zero_only
def draw(path: Path, rows: list[Row], figure: str) -> None:
    """Draw a figure over the budget, a line for each test set, and the steps taken over its size, where it has one."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.get("set", "") for row in rows))
    last = {row.get("set", ""): row for row in rows}
    sizes = {name: int(name) for name in names if str(name).isdecimal()}
    picture = Figure(figsize=(9 if len(sizes) > 1 else 5, 3.4), layout="constrained")
    axes = picture.subplots(1, 2 if len(sizes) > 1 else 1, squeeze=False)[0]
    draw_budgets(axes[0], rows, figure)
    if len(sizes) > 1:
        _draw_steps(axes[1], {size: last[name] for name, size in sizes.items() if "test_solver_steps" in last[name]})
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    with replacing(path.with_name(f"{path.name}.png"), "wb") as file:
        picture.savefig(file, format="png", dpi=150)
    say(f"picture: {from_here(path)}.png")


def draw_budgets(axes: Any, rows: list[Row], figure: str) -> None:
    """Draw a figure over the budget, a line for each test set."""
    names = list(dict.fromkeys(row.get("set", "") for row in rows))
    for name in names:
        own = [row for row in rows if row.get("set", "") == name]
        axes.plot([row["budget"] for row in own], [row[figure] for row in own], "o-", ms=3.5, label=name or None)
    axes.set(xscale="log", xlabel="solver steps allowed", ylabel=called(figure))
    _plain_ticks(axes.xaxis, [row["budget"] for row in rows])
    if len(names) > 1:
        title = "size" if any(str(name).isdecimal() for name in names) else None
        axes.legend(title=title, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def called(figure: str) -> str:
    """Return what a figure of the test is called where it stands beside others of the test."""
    return figure.removeprefix("test_").replace("_", " ")


def _draw_steps(axes: Any, rows: dict[int, Row]) -> None:
    """Draw the steps taken over the size; a hollow mark is a lower bound: some samples did not stop by themselves."""
    known = {size: row["test_solver_steps"] for size, row in rows.items() if _stopped(row)}
    bounds = {size: row["test_solver_steps"] for size, row in rows.items() if not _stopped(row)}
    axes.plot(list(known), list(known.values()), "o-", ms=3.5, color="black")
    if bounds:
        axes.plot(list(bounds), list(bounds.values()), "^", ms=5, mfc="none", color="black", label="at least")
        axes.legend(frameon=False)
    axes.set(xlabel="size", ylabel="solver steps taken", xlim=(0, None), ylim=(0, None))


def _plain_ticks(axis: Any, values: list[int]) -> None:
    """Mark the values themselves on a logarithmic axis."""
    from matplotlib.ticker import NullLocator, ScalarFormatter

    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(sorted(set(values)))
