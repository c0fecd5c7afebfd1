"""What it brings to let a network choose its computation: MIND, its parts left out, and its price.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/adaptive.py dots --seeds 3

Every row is the shipped config with something changed, fitted and then asked for predictions as whole processes. Runs
that are in the JSON file already are not run again. The table has, over the seeds: test accuracy, that of each bin of
difficulty (the data's own, or the network's confidence: above 0.8, 0.4 to 0.8, below), the layers that are on, the
solver's steps, the millions of operations, and the rank correlation of difficulty and steps; a picture has accuracy
over operations.
"""

import csv
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from figures import grid, options_for, save
from measure import versions
from reasoning import command
from scipy.stats import spearmanr

import deq_lightning

ALL, NONE = "--model.net.variant all", "--model.net.variant none"
JFB, NPG = "--gradient JFB", "--gradient NPG --gradient.k 6 --gradient.damping 0.9"
ONE_STEP = "--gradient Unrolled --gradient.unroll_steps 1"
ROWS = {
    "MIND": "",
    "no layer (CNN)": NONE,
    "every layer, one step": f"{ALL} {ONE_STEP}",
    "every layer": ALL,
    "MIND, JFB": JFB,
    "every layer, JFB": f"{ALL} {JFB}",
    "MIND, NPG(6, 0.9)": NPG,
    "MIND, Implicit": "--gradient Implicit",
    "by entropy": "--model.net.variant fixed",
    **{f"MIND, price {price}": f"--model.cost_weight {price}" for price in (0, 0.1, 0.3, 1)},
}
PROBLEMS = {  # config, and what says how hard a sample is
    "dots": ("dots_mind", "shift"),
    "digits": ("digits_mind", None),
    "cifar": ("cifar_mind", None),
}
ONLY_ON = {"dots": {"by entropy": "--model.net.thresholds [0.4]"}}
FIGURES = ("layers", "solver_steps", "mflops")


def fitted(config: str, changes: str, seed: int) -> dict[str, Any]:
    """Fit in an empty folder; return the predictions, what they would be with other choices, and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        printed = command(f"fit --config {config} --seed_everything {seed} --test_after_fit false {changes}", folder)
        seconds = time.perf_counter() - start
        best = Path(folder, *re.findall(r"^best checkpoint: (\S+)", printed, re.M))
        command(f"predict --ckpt_path {best}", folder)
        with best.with_name("predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        return {"seconds": seconds, "rows": rows, "with other choices": others(best)}


@torch.no_grad()
def others(best: Path) -> dict[str, float]:
    """Return the accuracy where each sample gets the choice of its neighbour, and where every layer is on."""
    net = deq_lightning.load(best).net.eval()
    if not hasattr(net, "introspection"):
        return {}
    config = yaml.safe_load(best.with_name("config.yaml").read_text())["data"]
    data = getattr(deq_lightning, config["class_path"].split(".")[-1])(**config["init_args"])
    data.setup("test")
    right = {"of a neighbour": 0, "every layer": 0}
    for x, y in data.test_dataloader():
        choice = net.choose(net.stages[0](x))
        for name, other in (("of a neighbour", choice.roll(1, 0)), ("every layer", torch.ones_like(choice))):
            right[name] += int((net.think(x, other).logits.argmax(1) == y).sum())
    return {name: count / len(data.test_set) for name, count in right.items()}


def bins_of(row: Mapping[str, str], column: str | None) -> str:
    """Return how hard a sample is: what the data says, or how sure the network is."""
    if column is not None:
        return f"{column} {row[column]}"
    sure = float(row["probability"])
    return "sure" if sure > 0.8 else "less sure" if sure > 0.4 else "not sure"


def summary(run: Mapping[str, Any], column: str | None) -> dict[str, float]:
    """Return the figures of a run."""
    rows: Sequence[Mapping[str, str]] = run["rows"]
    right = [row["prediction"] == row["label"] for row in rows]
    figures = {"accuracy": fmean(right)}
    for name in FIGURES:
        figures[name] = fmean(float(row.get(name, 0)) for row in rows)
    parts = sorted({bins_of(row, column) for row in rows})
    for part in parts:
        chosen = [row for row in rows if bins_of(row, column) == part]
        figures[f"accuracy, {part}"] = fmean(row["prediction"] == row["label"] for row in chosen)
        figures[f"steps, {part}"] = fmean(float(row.get("solver_steps", 0)) for row in chosen)
    if "solver_steps" in rows[0]:
        hard = [float(row[column]) if column else -float(row["probability"]) for row in rows]
        figures["rank correlation"] = float(spearmanr(hard, [int(row["solver_steps"]) for row in rows]).statistic)
    return figures | run["with other choices"] | {"seconds": run["seconds"]}


def shown(values: Sequence[float]) -> str:
    """Return the mean, and the deviation of several."""
    digits = 3 if max(values) < 10 else 0
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def picture(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """Return accuracy over operations, a mark for each row."""
    figure, ((axes,),) = grid(1, 1, 7.5, 3.6)
    for name, runs in table.items():
        x, y = (fmean(run[figure] for run in runs.values()) for figure in ("mflops", "accuracy"))
        axes.plot([x], [y], "o" if name.startswith("MIND") else "s", label=name)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel="millions of operations for an image", ylabel="test accuracy")
    return figure


def main() -> None:
    """Run what is missing, print the table, write JSON and picture."""
    parser = options_for("adaptive", __doc__)
    parser.add_argument("problem", choices=sorted(PROBLEMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="names of the rows")
    parser.add_argument("--flags", default="", help="for every run, such as --data.root PATH")
    options = parser.parse_args()
    for name in ("json", "png"):
        path = getattr(options, name)
        setattr(options, name, path.with_stem(f"{path.stem}_{options.problem}"))
    config, column = PROBLEMS[options.problem]
    table: dict[str, dict[str, dict[str, float]]] = {}
    if options.json.exists():
        table = json.loads(options.json.read_text())["table"]
    for seed in options.seeds:
        for name in options.only:
            runs = table.setdefault(name, {})
            if str(seed) in runs:
                continue
            changes = " ".join((options.flags, ROWS[name], ONLY_ON.get(options.problem, {}).get(name, "")))
            runs[str(seed)] = summary(fitted(config, changes, seed), column)
            save(options, {"versions": versions(), "flags": options.flags, "table": table}, picture(table))
    print_table({name: runs for name, runs in table.items() if runs})


def print_table(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print a row for every row, and in it mean and deviation over the seeds."""
    names = list(dict.fromkeys(name for runs in table.values() for run in runs.values() for name in run))
    print(f"| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for row, runs in table.items():
        found = [[run[name] for run in runs.values() if name in run] for name in names]
        print(f"| {row} | {' | '.join(shown(values) if values else '' for values in found)} |")


if __name__ == "__main__":
    main()
