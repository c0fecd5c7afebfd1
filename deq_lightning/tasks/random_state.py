"""The random state in checkpoints."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor


class RandomState(Callback):
    """Saves the random state in every checkpoint, so that a resumed run draws what the uninterrupted one would have."""

    def __init__(self) -> None:
        self._saved: dict[str, Tensor] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the state of the CPU and of the device in use."""
        del trainer
        checkpoint["rng_state"] = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            checkpoint["rng_state"]["cuda"] = torch.cuda.get_rng_state(pl_module.device)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the state until training starts."""
        del trainer, pl_module
        self._saved = checkpoint.get("rng_state", {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the state, once; several processes must not share the one that was saved."""
        saved, self._saved = self._saved, {}
        if trainer.world_size > 1:
            return
        if "cpu" in saved:
            torch.set_rng_state(saved["cpu"].cpu())
        if "cuda" in saved and pl_module.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda"].cpu(), pl_module.device)
