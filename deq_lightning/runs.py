"""A run on disk: its folder, its config, its checkpoints."""

import pickle
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from deq_lightning.parsing import UsageError

CONFIG = "config.yaml"
say = rank_zero_only(print)


def free_folder(parent: Path, name: str) -> Path:
    """Return `parent/name`, or `parent/name-2` and so on: a new run never touches an old one."""
    candidates = (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in candidates if not folder.exists())


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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint as plain data; nothing in the file is ever executed.

    Raises:
        UsageError: if the file is missing, truncated, not a checkpoint, or holds more than plain data.
    """
    path = Path(path)
    if not path.is_file():
        others = ", ".join(f"`{other}`" for other in sorted(path.parent.glob("*.ckpt")))
        raise UsageError(
            f"there is no checkpoint `{path}`. " + (f"There is {others}." if others else "Check the path.")
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not path.read_bytes().startswith(b"PK"):
            raise UsageError(
                f"`{path}` is not a checkpoint. Type the path of a .ckpt file written by `fit`."
            ) from error
        raise UsageError(
            f"`{path}` holds more than tensors and plain data (a pickled object or call), and was not loaded: "
            "that could execute code. Use a checkpoint written by `fit`."
        ) from error
    except Exception as error:  # whatever reading a damaged archive may raise
        raise UsageError(f"`{path}` is damaged or not a checkpoint. Use another one of that run.") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UsageError(f"`{path}` is not a checkpoint of this program: it has no `state_dict`.")
    return checkpoint


def check_fits(module: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Make sure that a checkpoint belongs to this model.

    Raises:
        UsageError: if names or shapes differ.
    """
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    saved = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
    differences = {
        "are missing in it": sorted(own.keys() - saved.keys()),
        "are unknown to the model": sorted(saved.keys() - own.keys()),
        "have another shape": sorted(name for name in own.keys() & saved.keys() if own[name] != saved[name]),
    }
    found = [f"{len(names)} tensors {what} (`{names[0]}`, ...)" for what, names in differences.items() if names]
    if found:
        raise UsageError(
            f"`{path}` is a checkpoint of another model: {'; '.join(found)}.\n"
            "Leave `--config` out to use the config that lies beside the checkpoint."
        )


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Give the module the tensors of a checkpoint that have the name and shape of its own, and say which it has not.

    Raises:
        UsageError: if the file is not a checkpoint, or no tensor fits.
    """
    saved, own = read_checkpoint(path)["state_dict"], module.state_dict()
    fitting = {name: saved[name] for name, tensor in own.items() if name in saved and saved[name].shape == tensor.shape}
    if not fitting:
        raise UsageError(f"no tensor of `{path}` has the name and shape of one of this model.")
    module.load_state_dict({**own, **fitting})
    fresh = sorted({".".join(name.split(".")[:2]) for name in own.keys() - fitting.keys()})
    rest = f"; fresh are tensors of {', '.join(f'`{part}`' for part in fresh)}" if fresh else ""
    return f"{len(fitting)} of {len(own)} tensors from {path}{rest}"


class SaveConfig(SaveConfigCallback):
    """Writes the config of a run into its folder, so that the folder alone can be tested or continued.

    With the first training batch, which is before the first checkpoint: what is refused until then leaves the config
    of an earlier run as it was.

    Args:
        parser: writes it.
        config: the config with what the folder's layout put in; not used.
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
        """Write it once."""
        del batch, batch_idx
        if trainer.is_global_zero and not self.already_saved:
            self.save_config(trainer, pl_module, "fit")
            self.already_saved = True

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it."""
        del trainer, pl_module, stage
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # By position: the third argument, whether to leave out None, has another name in every other release.
            (self.folder / CONFIG).write_text(self.parser.dump(self.config, "yaml", False))
