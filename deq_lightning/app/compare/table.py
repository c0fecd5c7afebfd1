"""What the runs of a comparison come to."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from deq_lightning.app.compare.axes import Pair, Setting
from deq_lightning.app.report.command import write_report
from deq_lightning.app.report.reading import RESULTS, TABLE
from deq_lightning.app.runs import is_first, say
from deq_lightning.app.tables import show, write

FAILED = "failed"  # folder of what is known of runs that failed
SURE = 0.05  # probability below which a difference is not taken for noise
FEWEST = 3  # repeats of which one can tell
COSTS = ("seconds_per_step", "peak_memory_mib", "mflops_per_sample", "parameters")
HIDDEN = ("test_loss", "test_solver_steps_max")
Repeats = dict[tuple[Pair, ...], dict[str, Any]]


def report(folder: Path, settings: Sequence[Setting]) -> None:
    """Print the table, and write it as CSV and JSON.

    Mean and deviation are over the repeats. The best value of the figure that ranks models is bold where it is better
    than every other one by a paired t-test over the repeats that both have, at 5 %.

    Args:
        folder: of the comparison.
        settings: its runs, of which some may have failed, or be under way elsewhere.
    """
    found = _found(folder, settings)
    figure, sign = _ranks(found)
    best = _best(found, figure, sign) if figure else None
    rows, shown = [], []
    for kind, repeats in found.items():
        plain: dict[str, Any] = {key: value for key, value in kind}
        seen: dict[str, Any] = {key: escape(value) for key, value in plain.items()}
        columns: dict[str, list[float]] = {}
        for run in repeats.values():
            for name, value in _columns(run).items():
                columns.setdefault(name, []).append(value) if value is not None else None
        plain["runs"] = seen["runs"] = sum("error" not in run for run in repeats.values())
        for name, values in columns.items():
            plain[name], plain[f"{name}_std"] = statistics.fmean(values), _deviation(values)
            if name not in HIDDEN:
                text = _text(values)
                seen[name] = f"[bold]{text}[/bold]" if (kind, name) == (best, figure) else text
        errors = [run["error"] for run in repeats.values() if "error" in run]
        if errors:
            plain["failed"] = f"{len(errors)}: {errors[0]}"
            seen["failed"] = escape(plain["failed"][:60])
        rows.append(plain)
        shown.append(seen)
    protocol = {"runs": sum(row["runs"] for row in rows), "of": len(settings)}
    show(shown, protocol)
    if best is not None:
        say(f"bold: the best {figure}, by a paired t-test over {_names(settings)} at {SURE:.0%}")
    if any("failed" in row for row in rows):
        say(f"failed runs are not done again: delete `{folder / FAILED}` for that")
    runs = [{"name": one.name, "kind": dict(one.kind), "repeat": dict(one.repeat)} for one in settings]
    write((folder / TABLE).with_suffix(""), rows, {**protocol, "settings": runs})
    if is_first():
        write_report(folder)


def _columns(run: dict[str, Any]) -> dict[str, float | None]:
    """Return the figures of a run and its costs; of one without a test that of its best checkpoint."""
    if "error" in run:
        return {}
    return (run["test"] or {run["monitor"]: run.get("best")}) | {cost: run.get(cost) for cost in COSTS}


def _found(folder: Path, settings: Sequence[Setting]) -> dict[tuple[Pair, ...], Repeats]:
    """Return the results, or the error, of each repeat of each kind of run."""
    found: dict[tuple[Pair, ...], Repeats] = {}
    for setting in settings:
        results, failed = folder / setting.name / RESULTS, folder / FAILED / setting.name
        repeats = found.setdefault(setting.kind, {})
        if results.is_file():
            repeats[setting.repeat] = json.loads(results.read_text())
        elif failed.is_file():
            repeats[setting.repeat] = {"error": failed.read_text().strip()}
    return found


def _ranks(found: dict[tuple[Pair, ...], Repeats]) -> tuple[str | None, int]:
    """Return the figure of the test that ranks models, and 1 or -1, where smaller is better."""
    for repeats in found.values():
        for run in repeats.values():
            figure = str(run.get("monitor", "")).replace("val_", "test_", 1)
            if figure in run.get("test", {}):
                return figure, 1 if run.get("mode") == "max" else -1
    return None, 1


def _best(found: dict[tuple[Pair, ...], Repeats], figure: str, sign: int) -> tuple[Pair, ...] | None:
    """Return the kind that is better than every other by more than noise; None if there is none."""
    values = {
        kind: {
            repeat: run["test"][figure]
            for repeat, run in repeats.items()
            if run.get("test", {}).get(figure) is not None
        }
        for kind, repeats in found.items()
    }
    values = {kind: ones for kind, ones in values.items() if ones}
    if len(values) < 2:
        return None
    best = max(values, key=lambda kind: sign * statistics.fmean(values[kind].values()))
    others = [ones for kind, ones in values.items() if kind != best]
    return best if all(_differ(values[best], ones) for ones in others) else None


def _differ(one: dict[Any, float], other: dict[Any, float]) -> bool:
    """Say whether the difference over the repeats that both have is more than noise."""
    from scipy.stats import ttest_rel

    both = [repeat for repeat in one if repeat in other]
    if len(both) < FEWEST:
        return False
    pairs = [one[repeat] for repeat in both], [other[repeat] for repeat in both]
    differences = {a - b for a, b in zip(*pairs, strict=True)}
    if len(differences) == 1:
        return differences != {0.0}  # the same each time, of which there is no deviation
    return bool(ttest_rel(*pairs).pvalue < SURE)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _text(values: Sequence[float]) -> str:
    mean, spread = statistics.fmean(values), _deviation(values)
    return f"{mean:.4g} ± {spread:.2g}" if spread else f"{mean:.4g}"


def _names(settings: Sequence[Setting]) -> str:
    return ", ".join(dict.fromkeys(key for setting in settings for key, _ in setting.repeat))
