"""What the commands that fit again and again share: the folder, its settings, and a fit that may fail."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from deq_lightning.app.compare.axes import Setting
from deq_lightning.app.messages import UsageError
from deq_lightning.app.runs import inside_of, is_first, leaves, run_name, say
from deq_lightning.files import StorageError, replacing

TRIED = 3  # settings that are built before the first run
Main = Callable[..., Any]  # the command line's own, from arguments to its object


def place_of(cli: Any, typed: str | None, ending: str) -> tuple[Path, str]:
    """Return the folder of all runs, and the name of the command's own folder in it.

    Args:
        cli: the command line object of what the runs share.
        typed: the name, if one was typed.
        ending: of the name otherwise, after that of the config.
    """
    parent = Path(cli.config.trainer.default_root_dir or "checkpoints")
    return parent, inside_of(parent, typed or f"{run_name(cli.config)}_{ending}")


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


def keep_base(path: Path, cli: Any) -> None:
    """Write down what all runs share, or make sure that it is the same.

    Args:
        path: the file for it.
        cli: the command line object of what they share.

    Raises:
        UsageError: if it is not.
    """
    base = json.loads(cli.parser.dump(cli.config, format="json"))
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
    one, other = dict(leaves(theirs)), dict(leaves(typed))
    for key in [*one, *other]:
        if key != "config" and one.get(key) != other.get(key):
            return f"there `{key}` is {one.get(key)}, here {other.get(key)}"
    return None


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
