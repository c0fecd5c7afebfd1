"""How several processes, on one machine or on many, share runs."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from deq_lightning.app.compare.axes import Setting
from deq_lightning.app.compare.claims import claimed
from deq_lightning.app.messages import UsageError
from deq_lightning.app.report.reading import RESULTS
from deq_lightning.app.runs import say

T = TypeVar("T")


def add_sharing(parser: argparse.ArgumentParser) -> None:
    """Add the options that say who does which runs."""
    parser.add_argument("--jobs", type=int, default=1, help="Processes that do runs side by side on this machine.")
    parser.add_argument(
        "--shard", default="1/1", help="Which part of the runs to do, such as 2/3: of several machines."
    )


def part_of(runs: Sequence[T], options: argparse.Namespace) -> Sequence[T]:
    """Return the runs that this process may do.

    Raises:
        UsageError: if the options are out of their ranges.
    """
    if options.jobs < 1:
        raise UsageError(f"`--jobs` must be 1 or more, got {options.jobs}.")
    part, _, parts = options.shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UsageError(f"`--shard` must be a part of so many, such as 2/3, got {options.shard}.")
    return runs[int(part) - 1 :: int(parts)]


@contextmanager
def helpers(command: str, args: Sequence[str], jobs: int, folder: Path) -> Iterator[None]:
    """Have other processes type the same command, and wait for them; each takes runs that nobody has taken."""
    if jobs == 1:
        yield
        return
    threads = max(1, torch.get_num_threads() // jobs)
    torch.set_num_threads(threads)
    typed = [sys.executable, "-m", "deq_lightning", command, *args, "--jobs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    others = []
    for number in range(2, jobs + 1):
        log = folder / f"job-{number}.log"
        say(f"job {number}: {log}")
        with log.open("a") as file:
            others.append(subprocess.Popen(typed, env=environment, stdout=file, stderr=subprocess.STDOUT))
    try:
        yield
        for other in others:
            other.wait()
    finally:
        for other in others:
            other.terminate()


def once(setting: Setting, folder: Path, fit: Callable[[], None]) -> None:
    """Do a run, unless it is done, or another process is at it.

    Args:
        setting: of the run.
        folder: that holds the folders of all runs.
        fit: begins the run or goes on with it.
    """
    done = folder / setting.name / RESULTS
    if done.is_file():
        return
    with claimed(folder / "claims", setting.name) as ours:
        if ours and not done.is_file():
            fit()
