"""What a folder holds of a run, or of a comparison."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deq_lightning.app.messages import UsageError
from deq_lightning.app.runs import record_of

RESULTS = "results.json"
METRICS = "metrics.csv"
TABLE = "comparison_table.json"
SCALE = "scale.json"
REACHED = "reached/"  # before the names of figures in TensorBoard's table of settings
NO_CURVES = ("hp_metric", REACHED)  # how names begin that are no curves
Curve = tuple[list[int], list[float]]  # steps and values


@dataclass
class Run:
    """What is known of a run; each part may be missing.

    Attributes:
        folder: where it is.
        results: what was written at its end.
        settings: its config.
        curves: steps and values by the names they were logged under.
        budgets: rows of `scale`.
    """

    folder: Path
    results: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    budgets: list[dict[str, Any]] = field(default_factory=list)

    @property
    def monitor(self) -> str:
        """The figure of the validation that ranks models."""
        return str(self.results.get("monitor") or next((name for name in self.curves if _is_figure(name)), "val_loss"))

    @property
    def reached(self) -> dict[str, Any]:
        """The figures of the test; of a run without one that of its best checkpoint."""
        return self.results.get("test") or {self.monitor: self.results.get("best")}

    @property
    def ranked(self) -> str:
        """The figure among them that ranks models."""
        tested = self.monitor.replace("val_", "test_", 1)
        return tested if tested in self.reached else self.monitor

    def curve(self, name: str) -> Curve:
        """Return a curve, empty where it was not logged."""
        return self.curves.get(name, ([], []))


def _is_figure(name: str) -> bool:
    return name.startswith("val_") and not name.startswith(("val_loss", "val_solver"))


def read_run(folder: Path) -> Run:
    """Read a run; one of an earlier version, or that was stopped, has its curves in TensorBoard's files alone.

    Raises:
        UsageError: if nothing of a run is there, or it is damaged.
    """
    path = folder / METRICS
    rows = _rows(path) if path.is_file() else curves_of(folder) if any(folder.glob("events.out.*")) else []
    run = Run(folder, _json(folder / RESULTS), record_of(folder), _curves(rows), _json(folder / SCALE).get("rows", []))
    if not (run.results or run.curves):
        raise UsageError(
            f"`{folder}` holds no run: there is neither {RESULTS} nor curves in it. Type `--run` with the folder of a "
            "run, such as checkpoints/digits_upg."
        )
    return run


def read_comparison(folder: Path) -> tuple[dict[str, Any], dict[str, list[Run]]]:
    """Read a comparison: its table, and the runs of each kind of setting, by the name that the kind has.

    Raises:
        UsageError: if it is damaged.
    """
    table = _json(folder / TABLE)
    kinds: dict[str, list[Run]] = {}
    for setting in table.get("settings", []):
        if (folder / setting["name"] / RESULTS).is_file():
            kinds.setdefault(title_of(setting["kind"]), []).append(read_run(folder / setting["name"]))
    return table, kinds


def title_of(kind: dict[str, Any]) -> str:
    """Return the name of a kind of setting; the last parts of its flags will do."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in kind.items()) or "all"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"`{path}` is damaged. Move it away.") from error
    return found if isinstance(found, dict) else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _curves(rows: list[dict[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and value not in ("", None):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    return curves


def curves_of(folder: Path) -> list[dict[str, float]]:
    """Return all that TensorBoard draws of a run, of every start, with a row for each step; empty if there is nothing.

    Args:
        folder: with its files.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # all of them
    read.Reload()
    rows: dict[int, dict[str, float]] = {}
    for name in read.Tags()["scalars"]:
        for one in () if name.startswith(NO_CURVES) else read.Scalars(name):
            rows.setdefault(one.step, {"step": one.step})[name] = one.value
    return [rows[step] for step in sorted(rows)]
