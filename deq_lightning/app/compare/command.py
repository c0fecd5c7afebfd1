"""The command: its options, its runs, and its folder."""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from deq_lightning.app.compare.axes import Setting, settings_of
from deq_lightning.app.compare.claims import claimed
from deq_lightning.app.compare.table import FAILED, report
from deq_lightning.app.messages import Options, UsageError
from deq_lightning.app.results import RESULTS
from deq_lightning.app.runs import inside_of, is_first, run_name, say
from deq_lightning.files import StorageError, replacing

BASE = "comparison.json"  # the settings that all runs share
TRIED = 3  # settings that are built before the first run
Main = Callable[..., Any]  # the command line's own, from arguments to its object


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
    parent = Path(cli.config.trainer.default_root_dir or "checkpoints")
    name = inside_of(parent, options.name or f"{run_name(cli.config)}_compared")
    folder = parent / name
    keep_base(folder / BASE, json.loads(cli.parser.dump(cli.config, format="json")))
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


def check_flags(settings: Sequence[Setting], rest: Sequence[str], main: Main) -> None:
    """Build a setting, so that an unknown flag ends the command and not every run of it; single ones may be refused."""
    for number, setting in enumerate(settings[:TRIED], start=1):
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                main([*rest, *setting.flags], run=False)
            return
        except SystemExit:
            if number == min(len(settings), TRIED):
                print(said.getvalue(), end="", file=sys.stderr)
                raise


def keep_base(path: Path, base: dict[str, Any]) -> None:
    """Write down what all runs share, or make sure that it is the same.

    Raises:
        UsageError: if it is not.
    """
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise UsageError(f"`{path}` is damaged. Move it away, or type `--name NAME` for new runs.") from error
        if different := difference(found, base):
            raise UsageError(
                f"`{path.parent}` holds runs of other settings: {different}. Type `--name NAME` for new ones."
            )
        return
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "w") as file:
            file.write(json.dumps(base, indent=2) + "\n")


def difference(theirs: dict[str, Any], typed: dict[str, Any]) -> str | None:
    """Say the first thing that differs between two trees of settings."""
    one, other = dict(_leaves(theirs)), dict(_leaves(typed))
    for key in [*one, *other]:
        if key != "config" and one.get(key) != other.get(key):
            return f"there `{key}` is {one.get(key)}, here {other.get(key)}"
    return None


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting with its dotted name."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


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


def fit_or_fail(setting: Setting, rest: Sequence[str], parent: Path, name: str, last: str, main: Main) -> str | None:
    """Fit a setting, from its last checkpoint if there is one, and return what went wrong with it.

    Args:
        setting: what is its own.
        rest: arguments that all settings share.
        parent: folder of all runs.
        name: of the folder in it that holds the settings.
        last: name of the file of a last checkpoint.
        main: runs the command line.
    """
    say(f"setting: {setting.name}", flush=True)
    said = Kept()
    try:
        with redirect_stderr(said):
            main(["fit", *rest, *setting.flags, *place(parent, f"{name}/{setting.name}", last)])
    except SystemExit as error:
        if error.code not in (1, 2) or isinstance(error.__cause__, OSError | StorageError):
            raise  # stopped, or a full disk
        return said.getvalue().rpartition("error: ")[2]
    return None


class Kept(io.StringIO):
    """Keeps what is written, and passes it on to what was the standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = sys.stderr

    def write(self, text: str) -> int:
        """Do both."""
        self._shown.write(text)
        return super().write(text)


def place(parent: Path, name: str, last: str) -> list[str]:
    """Return the arguments that begin a run, or go on from its last checkpoint."""
    own = parent / name
    if (own / last).is_file():
        return ["--ckpt_path", str(own / last)]
    if not any(own.glob("*.ckpt")):
        rank_zero_only(shutil.rmtree)(own, ignore_errors=True)  # of a run that did not come to its first checkpoint
    return ["--name", name]
