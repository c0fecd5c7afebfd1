"""What the configs that need no download reach: the shipped command, as a whole process, over seeds.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/first_runs.py

Of the test split: the figure, the share of samples whose equilibrium was found, and the mean evaluations. Seconds are
wall time from the start of the program to its end.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from measure import versions

ROOT = Path(__file__).parent.parent
UNROLLED = "digits_upg --gradient Unrolled --gradient.unroll_steps 5"
RUNS = ("digits_upg", "digits_npg", "digits_jfb", "digits_implicit", UNROLLED)


def run(arguments: Sequence[str], seed: int) -> dict[str, float]:
    """Fit and test in an empty folder, and return what was printed."""
    command = [sys.executable, "-m", "deq_lightning", "fit", "--config", *arguments, "--seed_everything", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
        )
        seconds = time.perf_counter() - start
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("test_loss ")]
    figures = {name: float(value) for name, value in re.findall(r"(\w+) (\S+)", line)}
    (selected,) = re.findall(r"best checkpoint: .*\((\w+) (\S+)\)", done.stdout)
    return figures | {selected[0]: float(selected[1]), "seconds": seconds}


def cell(rows: Sequence[dict[str, float]], name: str, digits: str) -> str:
    """Return the values of all seeds, and their mean where there are several."""
    values = [row[name] for row in rows if name in row]
    if not values:
        return ""
    mean = f" ({fmean(values):{digits}})" if len(values) > 1 else ""
    return ", ".join(f"{value:{digits}}" for value in values) + mean


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", nargs="*", default=RUNS, help="what follows `--config`, quoted")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/first_runs.json"))
    options = parser.parse_args()
    print(f"{versions()}; seeds 0 to {options.seeds - 1}, mean in brackets\n")
    print("| config | test_acc | equilibrium found | evaluations | seconds |\n|---|---|---|---|---|")
    table = {}
    for name in options.runs:
        rows = [run(name.split(), seed) for seed in range(options.seeds)]
        cells = [
            cell(rows, "test_acc", ".4f"),
            cell(rows, "test_solver_converged", ".3f"),
            cell(rows, "test_solver_steps", ".1f"),
            cell(rows, "seconds", ".0f"),
        ]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)
        table[name] = rows
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"versions": versions(), "table": table}, indent=2))


if __name__ == "__main__":
    main()
