"""A run on disk: its folder and its config."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from deq_lightning.app.messages import UsageError
from deq_lightning.files import StorageError, not_written, replacing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.yaml"
say = rank_zero_only(print)


def claim_folder(parent: Path, name: str, writes: bool = True) -> tuple[Path, list[Path]]:
    """Make `parent/name`, or `parent/name-2` and so on: a new run never touches another one.

    Of several processes that work on one run the first makes it, if the run `writes` at all; the others return what it
    may be called.

    Returns:
        The folder, and it with those above it that were not there, the innermost first.

    Raises:
        UsageError: if the name leads out of `parent`.
        StorageError: if no folder can be made there.
    """
    inside = inside_of(parent, name)
    above = [path for path in (parent / inside).parents if not path.exists()]
    for number in count(1):
        folder = parent / (inside if number == 1 else f"{inside}-{number}")
        if not (writes and is_first()):
            return folder, []
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder, [folder, *above]
        except FileExistsError:
            if not folder.exists():  # a file stands where a folder above it should be
                raise UsageError(f"`{folder.parent}` must be a folder, and is a file. Type another `--name`.") from None
        except OSError as error:
            raise StorageError(not_written(error, folder)) from error
    raise AssertionError


def inside_of(parent: Path, name: str) -> str:
    """Return the name of a folder in `parent` without detours.

    Raises:
        UsageError: if it leads out of `parent`.
    """
    inside = os.path.relpath(os.path.join(parent, name), parent)
    if inside.split(os.sep)[0] in (os.curdir, os.pardir) or os.path.isabs(name):
        raise UsageError(
            f"`--name` must be a name of a folder in `{parent}`, got {name}. Leave out what leads elsewhere."
        )
    return inside


def is_first() -> bool:
    """Say whether this is the first of the processes that work on one run, or the only one."""
    return getattr(rank_zero_only, "rank", None) in (0, None)


class Lock:
    """Keeps other processes out of a folder for as long as this process lives.

    Where the file system has no locks, it keeps nobody out.

    Args:
        folder: exists.
        patience: seconds to wait for one that has just been killed, and whose children go later.

    Raises:
        UsageError: if another process keeps it.
    """

    def __init__(self, folder: Path, patience: float = 15.0) -> None:
        self.handle: int | None = None
        if fcntl is None or not is_first():
            return
        until = time.monotonic() + patience
        with suppress(OSError):
            self.handle = os.open(folder, os.O_RDONLY)
            while not self._take(self.handle):
                if time.monotonic() > until:
                    self.release()
                    raise UsageError(
                        f"another process is at work in `{folder}`. Wait for it, or type another `--name`."
                    )
                time.sleep(0.1)

    def _take(self, handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let others in."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def from_here(path: str | Path) -> str:
    """Return the path relative to the current folder if it lies in it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def record_of(folder: Path) -> dict[str, Any]:
    """Return the config that was saved in a run's folder; empty if there is none."""
    try:
        record = yaml.safe_load((folder / CONFIG).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return record if isinstance(record, dict) else {}


def leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of a config with its dotted name."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def run_name(config: Namespace) -> str:
    """Return the name of the first config, or of model and gradient where there is none."""
    if config.get("config"):
        return Path(str(config.config[0])).stem
    names = (config.model.init_args.net.class_path, config.gradient.class_path)
    return "_".join(name.rsplit(".", 1)[-1].lower() for name in names)


class SaveConfig(SaveConfigCallback):
    """Writes the config of a run into its folder, so that the folder alone can be tested or continued.

    It does so before the first training batch and so before the first checkpoint. A run that is refused earlier leaves
    an older config as it was.

    Args:
        parser: writes it.
        config: the config with the paths of the folder filled in; not used.
        folder: the run's folder.
        typed: the config as typed. Without the run's own paths it also serves as the config of new runs.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        folder: Path | None = None,
        typed: Namespace | None = None,
    ) -> None:
        super().__init__(parser, typed or config, save_to_log_dir=False)
        self.folder = folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Do nothing: it is too early."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the config before the first training batch of the first epoch."""
        del batch, batch_idx
        if trainer.is_global_zero and not self.already_saved:
            self.save_config(trainer, pl_module, "fit")
            self.already_saved = True

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the config into the run's folder."""
        del trainer, pl_module, stage
        if self.folder is not None:
            # By position: the third argument, whether to leave out None, has another name in every other release.
            with replacing(self.folder / CONFIG, "w") as file:
                file.write(self.parser.dump(self.config, "yaml", False))
