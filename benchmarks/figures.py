"""What the scripts that draw figures share: their options, the look, and where the results go."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure  # without pyplot: no window, Agg writes the file

RESULTS = Path("benchmarks/results")
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 130,
}
mpl.rcParams.update(STYLE)


def options_for(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows where the results of the script of this name go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / f"{name}.json")
    parser.add_argument("--png", type=Path, default=RESULTS / f"{name}.png")
    return parser


def grid(rows: int, columns: int, width: float = 4.2, height: float = 3.0) -> tuple[Figure, Any]:
    """Return a figure and its array of axes; width and height are those of one panel, in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(options: argparse.Namespace, results: Mapping[str, Any], figure: Figure) -> None:
    """Write the JSON and the PNG where the options say."""
    for path in (options.json, options.png):
        path.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1))
    figure.savefig(options.png)
    print(f"\nwrote {options.json} and {options.png}")
