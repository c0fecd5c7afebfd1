"""Which figure of the validation selects the best checkpoint."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from deq_lightning.app.ending import is_of_the_method
from deq_lightning.app.messages import UsageError, suggest
from deq_lightning.app.runs import say
from deq_lightning.tasks import ImplicitTask

MODES = ("min", "max")


def select_by_task(best_checkpoint: Namespace, typed: Namespace | None, task: ImplicitTask) -> None:
    """Let the task say which figure selects the best checkpoint and whether high or low is best, unless it was typed.

    Args:
        best_checkpoint: the settings, with every default; changed.
        typed: those that were typed.
        task: the task.

    Raises:
        UsageError: if the mode is none.
    """
    if best_checkpoint.mode not in MODES:
        raise UsageError(f"`--best_checkpoint.mode` must be {' or '.join(MODES)}, got {best_checkpoint.mode}.")
    given = typed or Namespace()
    if given.get("monitor") is None:
        best_checkpoint.monitor = task.monitor
    if given.get("monitor") is None or given.get("mode") is None:  # a mode alone is the default that a run has saved
        best_checkpoint.mode = task.mode_of(best_checkpoint.monitor)


def mode_is_open(typed: Namespace) -> bool:
    """Say whether a monitor was typed without its mode: what is recorded then has to say it, or `min` is read back.

    Args:
        typed: what was typed of the subcommand.
    """
    given = typed.get("best_checkpoint") or Namespace()
    return given.get("monitor") is not None and given.get("mode") is None


def name_several(config: Namespace, keys: Iterable[str]) -> None:
    """Give the files of several best checkpoints a name each, by epoch, step and figure.

    Args:
        config: the settings, with every default; changed.
        keys: of the checkpoints.

    Raises:
        UsageError: if two of them would be one file.
    """
    files = [(config[key].dirpath, config[key].filename) for key in keys]
    if len(set(files)) < len(files):
        raise UsageError(
            f"the checkpoints must have a file each, got `{files[0][1]}` for all. Type another `filename`."
        )
    for key in keys:
        own = config[key]
        if own.save_top_k not in (0, 1) and "{" not in str(own.filename):
            own.filename = f"{own.filename}-{{epoch}}-{{step}}{_figure(own.monitor)}"


def _figure(monitor: str | None) -> str:
    """Return what stands for a figure in the name of a file."""
    return "" if monitor is None or "/" in monitor else f"-{{{monitor}:.4g}}"


class Selection(Callback):
    """Sees at the first validation, that is before training, whether the figure is there.

    A task that does not say which it is, and logs no `val_loss`, is selected by the first figure that it does log.

    Args:
        best: writes the best checkpoint.
        typed: whether the figure was typed.
    """

    def __init__(self, best: ModelCheckpoint, typed: bool) -> None:
        self.best = best
        self.typed = typed

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Choose, or refuse what was typed."""
        figures = trainer.callback_metrics
        for stopping in trainer.early_stopping_callbacks:
            if stopping.monitor.startswith("val_") and stopping.monitor not in figures:
                raise UsageError(
                    f"`monitor` of `EarlyStopping` must be a figure that is logged, got {stopping.monitor}. "
                    f"{suggest(stopping.monitor, sorted(name for name in figures if name.startswith('val_')))}"
                )
        if self.best not in trainer.checkpoint_callbacks or self.best.monitor in figures:
            return
        known = [name for name in figures if name.startswith("val_") and not is_of_the_method(name)]
        if self.typed or not known:
            raise UsageError(
                f"`--best_checkpoint.monitor` must be a figure of the validation, got {self.best.monitor}. "
                f"There is {', '.join(known) or 'none: log one in `validation_step`'}."
            )
        if self.best.filename is not None:
            self.best.filename = self.best.filename.replace(_figure(self.best.monitor), _figure(known[0]))
        self.best.monitor, self.best.mode = known[0], pl_module.mode_of(known[0])
        self.best.kth_value = torch.tensor(torch.inf if self.best.mode == "min" else -torch.inf)
        say(f"best checkpoint: by the {'lowest' if self.best.mode == 'min' else 'highest'} {known[0]}")
