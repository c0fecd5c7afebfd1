"""The command: its options, its runs, and its folder."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from deq_lightning.app.compare.axes import Setting, settings_of
from deq_lightning.app.compare.claims import claimed
from deq_lightning.app.compare.shared import Main, check_flags, fit_or_fail, keep_base, place_of
from deq_lightning.app.compare.table import FAILED, report
from deq_lightning.app.messages import Options, UsageError
from deq_lightning.app.report.reading import RESULTS
from deq_lightning.app.runs import say

BASE = "comparison.json"  # the settings that all runs share


def compare(args: Sequence[str], main: Main) -> Any:
    """Fit and test every combination of some settings, and show what they come to.

    The same command again goes on where it was interrupted, within a run from its last checkpoint; so does another
    process that shares the folder, with other runs.

    Args:
        args: what is typed after `compare`.
        main: runs the command line.

    Returns:
        The command line object of the settings that all runs share, built and not run.

    Raises:
        UsageError: if the options are wrong, or the folder holds runs of other settings.
    """
    options, rest = _parser().parse_known_args(args)
    settings = settings_of(options.over)
    own = settings[_shard(options.shard)]
    if options.jobs < 1:
        raise UsageError(f"`--jobs` must be 1 or more, got {options.jobs}.")
    cli = main(rest, run=False)  # so that whatever is wrong is said before the first run
    check_flags(settings, rest, main)
    parent, name = place_of(cli, options.name, "compared")
    folder = parent / name
    keep_base(folder / BASE, cli)
    with _helpers(args, options.jobs, folder):
        for setting in own:
            _once(setting, rest, parent, name, f"{cli.config.last_checkpoint.filename}.ckpt", main)
    report(folder, settings)
    return cli


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="deq_lightning compare",
        description="Fit and test every combination of settings, and show what they come to. The same command again "
        "goes on where it was interrupted.",
        epilog="Everything else is as for `fit`: `--config digits_upg --over gradient=UPG,JFB --over "
        "seed_everything=0..4`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        required=True,
        metavar="FLAG=VALUES",
        help="What to vary: a flag of `fit` and its values, a,b,c or 0..4. Several are combined, all with all; of "
        "'FLAG=a,b;FLAG=c,d' the first values go together, and the second.",
    )
    parser.add_argument("--name", help="Name of the folder. By default that of the config with `_compared` after it.")
    parser.add_argument("--jobs", type=int, default=1, help="Processes that do runs side by side on this machine.")
    parser.add_argument(
        "--shard", default="1/1", help="Which part of the runs to do, such as 2/3: of several machines."
    )
    return parser


def _shard(text: str) -> slice:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UsageError(f"`--shard` must be a part of so many, such as 2/3, got {text}.")
    return slice(int(part) - 1, None, int(parts))


@contextmanager
def _helpers(args: Sequence[str], jobs: int, folder: Path) -> Iterator[None]:
    """Have other processes type the same command, and wait for them; each takes runs that nobody has taken."""
    if jobs == 1:
        yield
        return
    threads = max(1, torch.get_num_threads() // jobs)
    torch.set_num_threads(threads)
    command = [sys.executable, "-m", "deq_lightning", "compare", *args, "--jobs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    helpers = []
    for number in range(2, jobs + 1):
        log = folder / f"job-{number}.log"
        say(f"job {number}: {log}")
        with log.open("a") as file:
            helpers.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    try:
        yield
        for helper in helpers:
            helper.wait()
    finally:
        for helper in helpers:
            helper.terminate()


def _once(setting: Setting, rest: Sequence[str], parent: Path, name: str, last: str, main: Main) -> None:
    """Do a run, unless it is done, has failed, or another process is at it."""
    folder = parent / name
    failed = folder / FAILED / setting.name
    if (folder / setting.name / RESULTS).is_file() or failed.is_file():
        return
    with claimed(folder / "claims", setting.name) as ours:
        if not ours or (folder / setting.name / RESULTS).is_file():
            return
        if error := fit_or_fail(setting, rest, parent, name, last, main):
            failed.parent.mkdir(exist_ok=True)
            failed.write_text(error)
