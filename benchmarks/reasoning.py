"""Which parts of a recipe let a reasoner solve problems larger than those it was trained on.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/reasoning.py prefix_sums --seeds 3

Every row is the shipped config with one thing changed, fitted and then scaled as whole processes: exact accuracy of
each test set with the largest budget, the evaluations after which samples stop by themselves, and path independence.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from measure import versions

ROOT = Path(__file__).parent.parent
SOLVER = "--model.net.solver"
VARIANTS = {
    "prefix_sums": {
        "the config": "",
        "no random starts": "--model.net.random_start 0",
        "no random budgets": f"{SOLVER}.min_steps null",
        "no penalty": "--model.penalty null",
        "no random starts, no penalty": "--model.net.random_start 0 --model.penalty null",
        "none of the three": f"--model.net.random_start 0 --model.penalty null {SOLVER}.min_steps null",
        "JFB": "--gradient JFB",
        "NPG(5, 0.8)": "--gradient NPG --gradient.k 5 --gradient.damping 0.8",
        "Implicit": "--gradient Implicit",
        "Unrolled(20)": "--gradient Unrolled --gradient.unroll_steps 20",
    },
    "sudoku4": {
        "the config": "",
        "one segment": "--model.segments 1 --model.halting false",
        "UPG(2, 1)": f"--gradient UPG --gradient.k 2 --gradient.damping 1 {SOLVER}.max_steps 1",
        "NPG(2, 1)": "--gradient NPG --gradient.k 2 --gradient.damping 1",
        "Implicit": "--gradient Implicit",
        "damping, noise, random starts": f"{SOLVER}.damping 0.95 {SOLVER}.noise 0.01 --model.net.random_start 1",
    },
}
CONFIGS = {"prefix_sums": "prefix_sums_upg", "sudoku4": "sudoku4_recursive"}
SCALE = {
    "prefix_sums": "--budgets [20,40,80,160,320] --data.test_lengths [16,32,64,128]",
    "sudoku4": "--budgets [1,2]",
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


def run(problem: str, changes: str, seed: int) -> dict[str, Any]:
    """Fit and scale in an empty folder; return the row of the largest budget of each test set, and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        options = f"--seed_everything {seed} --test_after_fit false"
        printed = command(f"fit --config {CONFIGS[problem]} {options} {changes}", folder)
        seconds = time.perf_counter() - start
        (best,) = re.findall(r"^best checkpoint: (\S+)", printed, re.M)
        command(f"scale --ckpt_path {best} {SCALE[problem]}", folder)
        rows = json.loads(Path(folder, best).with_name("scale.json").read_text())["rows"]
    return {
        "seconds": seconds,
        "sets": {row["set"]: row for row in rows},
    }  # the last row of a set has the largest budget


def shown(runs: list[dict[str, Any]], name: str, figure: str, digits: str) -> str:
    """Return a figure of a test set over the seeds, and its mean."""
    found = [run["sets"][name].get(figure) for run in runs]
    values = [float("nan") if value is None else value for value in found]  # an explicit network solves nothing
    mean = f" ({fmean(values):{digits}})" if len(values) > 1 else ""
    return ", ".join(f"{value:{digits}}" for value in values) + mean


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=sorted(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of the rows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{versions()}; seeds 0 to {options.seeds - 1}, mean in brackets\n", flush=True)
    table: dict[str, Any] = {}
    for name, changes in VARIANTS[options.problem].items():
        if options.only and name not in options.only:
            continue
        runs = [run(options.problem, changes, seed) for seed in range(options.seeds)]
        sets = list(runs[0]["sets"])
        if not table:
            heads = [f"exact {one} | steps {one} | independence {one}" for one in sets]
            print(f"| | {' | '.join(heads)} | seconds |\n|{'---|' * (3 * len(sets) + 2)}")
        cells = [
            shown(runs, one, figure, digits)
            for one in sets
            for figure, digits in (
                ("test_exact_acc", ".2f"),
                ("test_solver_steps", ".0f"),
                ("path_independence", ".4f"),
            )
        ]
        print(f"| {name} | {' | '.join(cells)} | {fmean(run['seconds'] for run in runs):.0f} |", flush=True)
        table[name] = runs
    path = options.json or ROOT / "benchmarks" / "results" / f"reasoning_{options.problem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"versions": versions(), "table": table}, indent=2))


if __name__ == "__main__":
    main()
