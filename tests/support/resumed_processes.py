"""As one of two processes: a run with dropout and an average, whole and in parts, and one that diverges.

With LOCAL_RANK and MASTER_PORT in the environment: python -m support.resumed_processes
"""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from deq_lightning import EMA, UPG, Digits, DivergenceGuard
from deq_lightning.callbacks import DivergenceError
from support.runs import digits_task, trainer

RANK = int(os.environ["LOCAL_RANK"])


class BadBuffer(pl.Callback):
    """Makes a buffer of the second process NaN, after the last batch of the epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *args: Any) -> None:
        if trainer.is_last_batch and RANK == 1:
            task.get_buffer("extra").fill_(torch.nan)


def fit(folder: str, epochs: int, seed: int, *callbacks: pl.Callback, start: Path | None = None) -> dict[str, Any]:
    """Return the weights and what every generator of this process draws next."""
    task = digits_task()
    torch.manual_seed(seed + RANK)
    random.seed(seed + RANK)
    np.random.seed(seed + RANK)
    last = ModelCheckpoint(folder, "last", enable_version_counter=False)
    options = {"devices": 2, "strategy": "ddp", "max_steps": -1, "max_epochs": epochs, "limit_train_batches": 3}
    run = trainer(Path(), UPG(), EMA(0.5), last, *callbacks, **options)
    run.fit(task, datamodule=Digits(batch_size=16), ckpt_path=start)
    draws = [torch.rand(3), random.random(), float(np.random.rand())]
    return {"weights": task.state_dict(), "draws": draws, "saved": torch.load(f"{folder}/last.ckpt", weights_only=True)}


def diverge() -> str:
    """Return what the guard says."""
    guard, task = DivergenceGuard(dirpath=f"of-{RANK}"), digits_task()
    task.register_buffer("extra", torch.zeros(()))
    options = {"devices": 2, "strategy": "ddp", "max_steps": -1, "max_epochs": 2, "limit_train_batches": 2}
    try:
        trainer(Path(), UPG(), BadBuffer(), guard, **options).fit(task, datamodule=Digits(batch_size=16))
    except DivergenceError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {"whole": fit("whole", 2, 1)}
    fit("parts", 1, 1)
    results["parts"] = fit("parts", 2, 100, start=Path("parts/last.ckpt"))
    results["error"] = diverge()
    torch.save(results, f"{RANK}.pt")
