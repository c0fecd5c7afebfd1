"""A run on disk: its folder and its config."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from deq_lightning.app.checkpoints import read_checkpoint
from deq_lightning.app.messages import UsageError

CONFIG = "config.yaml"
say = rank_zero_only(print)


def free_folder(parent: Path, name: str) -> Path:
    """Return `parent/name`, or `parent/name-2` and so on: a new run never touches an old one."""
    candidates = (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in candidates if not folder.exists())


def from_here(path: str | Path) -> str:
    """Return the path relative to the current folder if it lies in it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def run_name(config: Namespace) -> str:
    """Return the name of the first config, or of model and gradient where there is none."""
    if config.get("config"):
        return Path(str(config.config[0])).stem
    names = (config.model.init_args.net.class_path, config.gradient.class_path)
    return "_".join(name.rsplit(".", 1)[-1].lower() for name in names)


def with_own_config(args: Sequence[str]) -> list[str]:
    """Let `--ckpt_path X` without `--config` mean the config that X was trained with, which lies beside it.

    Whatever else is typed still wins, because it stands after the config.

    Raises:
        UsageError: if there is no such checkpoint or no config beside it.
    """
    args = list(args)
    checkpoint = _option(args, "--ckpt_path")
    if checkpoint is None or any(arg.split("=")[0] in ("-c", "--config") for arg in args):
        return args
    read_checkpoint(checkpoint)
    config = Path(checkpoint).with_name(CONFIG)
    if not config.is_file():
        raise UsageError(
            f"`{checkpoint}` has no {CONFIG} beside it. Type the config it was trained with: `--config NAME`."
        )
    return [*args[:1], f"--config={config}", *args[1:]]


def _option(args: Sequence[str], name: str) -> str | None:
    for arg, following in zip(args, [*args[1:], None], strict=False):
        if arg == name:
            return following
        if arg.startswith(f"{name}="):
            return arg.removeprefix(f"{name}=")
    return None


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
            self.folder.mkdir(parents=True, exist_ok=True)
            # By position: the third argument, whether to leave out None, has another name in every other release.
            (self.folder / CONFIG).write_text(self.parser.dump(self.config, "yaml", False))
