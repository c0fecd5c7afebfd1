"""Which parts of a recipe let a reasoner solve problems larger, or harder, than those it was trained on.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/reasoning.py prefix_sums

Every row is the shipped config with one thing changed, fitted and then scaled as whole processes: exact accuracy of
each test set with the largest budget, the evaluations after which samples stop by themselves, and path independence.
Other gradients train for as many epochs as take the time of the config's. Runs that are in the JSON file already are
not run again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from figures import grid, options_for, save
from matplotlib.ticker import NullLocator, ScalarFormatter
from measure import versions

ROOT = Path(__file__).parent.parent
SOLVER = "--model.net.solver"
Table = dict[str, dict[str, dict[str, Any]]]  # row, seed, what was found


@dataclass
class Problem:
    """A config, and what is compared on it."""

    config: str
    scale: str  # options of `scale`
    changes: dict[str, str]  # rows of as many epochs
    gradients: dict[str, str]  # rows of as much time
    flags: str = ""  # of every row
    counted: str = "evaluations allowed"
    extra: int = 0  # to the budget, for that
    figures: dict[str, str] = field(default_factory=lambda: {"test_exact_acc": ".3f"})


PROBLEMS = {
    "prefix_sums": Problem(
        "prefix_sums_upg",
        "--budgets [20,40,80,160,320] --data.test_lengths [16,32,64,128]",
        {
            "the config": "",
            "no random starts": "--model.net.random_start 0",
            "no random budgets": f"{SOLVER}.min_steps null",
            "no penalty": "--model.penalty null",
            "no random starts, no penalty": "--model.net.random_start 0 --model.penalty null",
            "none of the three": f"--model.net.random_start 0 --model.penalty null {SOLVER}.min_steps null",
            "explicit, 20 steps": "--gradient Unrolled --gradient.unroll_steps 20 --model.penalty null",
        },
        {
            "JFB": "--gradient JFB",
            "NPG(5, 0.8)": "--gradient NPG --gradient.k 5 --gradient.damping 0.8",
            "Implicit": "--gradient Implicit",
        },
        figures={"test_exact_acc": ".2f", "test_solver_steps": ".0f", "path_independence": ".4f"},
    ),
    "sudoku6": Problem(
        "sudoku6_recursive",
        "--model.eval_segments 1 --budgets [1,3,7,15,31]",  # one more cycle than the budget is run
        {
            "the config": "",
            "no random budgets": f"{SOLVER}.max_steps 1 {SOLVER}.min_steps null",
            "8 segments, halting head": f"--model.segments 8 --model.halting true {SOLVER}.max_steps 1 "
            f"{SOLVER}.min_steps null",
            "no average of the weights": "--ema null",
            "damping, noise, random starts": f"{SOLVER}.damping 0.95 {SOLVER}.noise 0.01 --model.net.random_start 1",
        },
        {
            "UPG(2, 1)": "--gradient UPG --gradient.k 2 --gradient.damping 1",
            "NPG(2, 1)": "--gradient NPG --gradient.k 2 --gradient.damping 1",
            "Implicit": "--gradient Implicit",
        },
        flags="--trainer.max_epochs 8 --trainer.check_val_every_n_epoch 4",
        counted="cycles",
        extra=1,
    ),
}


def command(arguments: str, folder: str) -> str:
    """Run the program in a folder and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "deq_lightning", *arguments.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def fit(problem: Problem, changes: str, seed: int, folder: str) -> tuple[str, float]:
    """Fit in a folder; return what it prints, and the seconds of processor time, which other work disturbs least."""
    always = f"--seed_everything {seed} --test_after_fit false --report false"
    before = os.times()
    printed = command(f"fit --config {problem.config} {always} {problem.flags} {changes}", folder)
    after = os.times()
    return printed, after.children_user + after.children_system - before.children_user - before.children_system


def run(problem: Problem, changes: str, seed: int) -> dict[str, Any]:
    """Fit and scale in an empty folder; return the seconds of the fit, and the rows of each test set."""
    with tempfile.TemporaryDirectory() as folder:
        printed, seconds = fit(problem, changes, seed, folder)
        (best,) = re.findall(r"^best checkpoint: (\S+)", printed, re.M)
        command(f"scale --ckpt_path {best} {problem.scale}", folder)
        rows = json.loads(Path(folder, best).with_name("scale.json").read_text())["rows"]
    sets: dict[str, list[dict[str, Any]]] = {}
    for row in rows:  # by budget
        sets.setdefault(row["set"], []).append(row)
    return {"seconds": seconds, "sets": sets}


def of_an_epoch(problem: Problem, changes: str, seed: int) -> float:
    """Return the seconds of an epoch: of a fit with one epoch, less those of a fit with one batch."""
    short = f"{changes} --trainer.max_epochs 1 --trainer.limit_val_batches 0 --trainer.limit_train_batches"
    with tempfile.TemporaryDirectory() as folder:
        return fit(problem, f"{short} 1.0", seed, folder)[1] - fit(problem, f"{short} 1", seed, folder)[1]


def as_long(problem: Problem, changes: str, seed: int) -> str:
    """Return the changes, and the epochs that take the time of the config's."""
    config = yaml.safe_load((ROOT / "configs" / f"{problem.config}.yaml").read_text())
    given = re.findall(r"--trainer\.max_epochs (\d+)", problem.flags)
    epochs = int(given[0]) if given else config["trainer"]["max_epochs"]
    ratio = of_an_epoch(problem, "", seed) / of_an_epoch(problem, changes, seed)
    epochs = max(1, round(epochs * ratio))
    return f"{changes} --trainer.max_epochs {epochs} --trainer.check_val_every_n_epoch {epochs}"


def shown(values: Sequence[float | None], digits: str) -> str:
    """Return figures over the seeds, and their mean."""
    known = [value for value in values if value is not None]
    if not known:
        return ""  # an explicit network solves nothing
    mean = f" ({fmean(known):{digits}})" if len(known) > 1 else ""
    return ", ".join(f"{value:{digits}}" for value in known) + mean


def print_table(table: Mapping[str, Mapping[str, Mapping[str, Any]]], figures: Mapping[str, str]) -> None:
    """Print a row for each row, with the largest budget of each test set."""
    rows = {name: list(runs.values()) for name, runs in table.items() if runs}
    sets = list(next(iter(rows.values()))[0]["sets"])
    heads = [f"{figure} {one}" for one in sets for figure in figures]
    print(f"| | {' | '.join(heads)} | seconds |\n|{'---|' * (len(heads) + 2)}")
    for name, runs in rows.items():
        cells = [
            shown([run["sets"][one][-1].get(figure) for run in runs], digits)
            for one in sets
            for figure, digits in figures.items()
        ]
        print(f"| {name} | {' | '.join(cells)} | {shown([run['seconds'] for run in runs], '.0f')} |")


def picture(table: Mapping[str, Mapping[str, Mapping[str, Any]]], problem: Problem) -> Any:
    """Return exact accuracy on the hardest test set over the budget, its mean over the seeds, a line for each row."""
    figure, ((axes,),) = grid(1, 1, 6.4, 3.6)
    for name, runs in table.items():
        found = [list(run["sets"].values())[-1] for run in runs.values()]
        curves = [[row["test_exact_acc"] for row in rows] for rows in found]
        budgets = [row["budget"] + problem.extra for row in found[0]]
        axes.plot(budgets, [fmean(values) for values in zip(*curves, strict=True)], "o-", ms=3, label=name)
    axes.set(xscale="log", xlabel=problem.counted, ylabel="exact accuracy")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(budgets)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    """Run what is missing, print the table, draw the picture, and write both."""
    parser = options_for("reasoning", __doc__)
    parser.add_argument("problem", choices=sorted(PROBLEMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", help="names of the rows")
    options = parser.parse_args()
    problem = PROBLEMS[options.problem]
    for name in ("json", "png"):
        path = getattr(options, name)
        setattr(options, name, path.with_stem(f"{path.stem}_{options.problem}"))
    table: Table = json.loads(options.json.read_text())["table"] if options.json.exists() else {}
    for seed in options.seeds:
        for name, changes in (problem.changes | problem.gradients).items():
            runs = table.setdefault(name, {})
            if str(seed) in runs or (options.only and name not in options.only):
                continue
            if name in problem.gradients:
                changes = as_long(problem, changes, seed)
            runs[str(seed)] = run(problem, changes, seed)
            print(f"{name}, seed {seed}: {runs[str(seed)]['seconds']:.0f} s", flush=True)
            keep(options, table, problem)
    keep(options, table, problem)
    print_table(table, problem.figures)


def keep(options: argparse.Namespace, table: Table, problem: Problem) -> None:
    """Write the runs and the picture of them."""
    found = {name: runs for name, runs in table.items() if runs}
    save(options, {"versions": versions(), "table": found}, picture(found, problem))


if __name__ == "__main__":
    main()
