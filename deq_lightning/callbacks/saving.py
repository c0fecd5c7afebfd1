"""A hook that every checkpoint passes."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class EverySave(Callback):
    """A callback that is shown every checkpoint before it is written, with its `on_every_save`.

    Lightning shows callbacks whole checkpoints alone; one of only the weights it shows to the module and nobody else.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stand in front of the module's own hook."""
        del trainer, stage
        if not isinstance(pl_module.on_save_checkpoint, _Shown):
            setattr(pl_module, "on_save_checkpoint", _Shown(pl_module))  # noqa: B010  # type checkers refuse the plain way

    def on_every_save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """See or change a checkpoint; `optimizer_states` are in it unless it is one of the weights alone."""


class _Shown:
    """A module's `on_save_checkpoint`. It asks the trainer whom to show, so it need never be taken away."""

    def __init__(self, module: pl.LightningModule) -> None:
        self.module = module
        self.own = module.on_save_checkpoint

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        trainer = self.module.trainer
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EverySave):
                callback.on_every_save(trainer, self.module, checkpoint)
        self.own(checkpoint)
