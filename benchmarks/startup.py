"""How long the program takes to answer, beside `import torch`, which all but the first answers wait for.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/startup.py

Of whole processes, from their start to their end, measured in turn (A B C A B C) after one round that fills the disk's
cache: the lowest and the median wall time of all rounds, the lowest processor time, and the median of the ratios of
wall time to `import torch` in the same round. The last row ends with the first optimizer step of the training run.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytorch_lightning
import torchmetrics
from measure import ratio, versions

ROOT = Path(__file__).parent.parent
BASE = "`import torch`"
FIRST_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
from deq_lightning.cli import main
sys.argv[1:] = ["fit", "--config", "digits_upg.yaml"]
main()
"""


def program(*arguments: str) -> list[str]:
    """Return the command that a user types."""
    return ["-m", "deq_lightning", *arguments]


ROWS: dict[str, Sequence[str]] = {
    BASE: ["-c", "import torch"],
    "`import pytorch_lightning`": ["-c", "import pytorch_lightning"],
    "`import deq_lightning`": ["-c", "import deq_lightning"],
    "`--version`": program("--version"),
    "`fitt`": program("fitt"),
    "`--help`": program("--help"),
    "`fit --config digits_upg.yaml --print_config`": program("fit", "--config", "digits_upg.yaml", "--print_config"),
    "`fit --config digits_upg.yaml`, to the first optimizer step": ["-c", FIRST_STEP],
}


def processor_time() -> float:
    """Return what all processes that were started and have ended have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(command: Sequence[str], root: Path) -> tuple[float, float]:
    """Return wall and processor time of Python on these arguments, in an empty folder, with the package of `root`."""
    with tempfile.TemporaryDirectory() as folder:
        start, used = time.perf_counter(), processor_time()
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
        )
        taken = time.perf_counter() - start, processor_time() - used
    if done.returncode != (2 if "fitt" in command else 0):
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr.decode()}")
    return taken


def measure(root: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return the times of every row, and their ratio to those of the first."""
    for command in ROWS.values():
        seconds(command, root)
    wall: dict[str, list[float]] = {name: [] for name in ROWS}
    processor: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(rounds):
        for name, command in ROWS.items():
            for times, taken in zip((wall, processor), seconds(command, root), strict=True):
                times[name].append(taken)
    return {
        name: {
            "lowest": min(wall[name]),
            "median": median(wall[name]),
            "processor": min(processor[name]),
            "over torch": ratio(wall, name, BASE),
        }
        for name in ROWS
    }


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/startup.json"))
    options = parser.parse_args()
    lightning = f"pytorch-lightning {pytorch_lightning.__version__}, torchmetrics {torchmetrics.__version__}"
    print(f"{versions()}, {lightning}; {options.rounds} rounds\n")
    rows = measure(options.root.resolve(), options.rounds)
    print("| | lowest, s | median, s | processor, s | / `import torch` |\n|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in row.values())} |")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"versions": f"{versions()}, {lightning}", "table": rows}, indent=2))


if __name__ == "__main__":
    main()
