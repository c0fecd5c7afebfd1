"""Trains a small language model, alone or as one of several processes, whole or from the middle of an epoch."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from deq_lightning import UPG, DEQTransformer, FixedPointIteration, LanguageModeling, WikiText2

QUIET = dict(
    accelerator="cpu",
    num_sanity_val_steps=0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)


class Counted(WikiText2):
    """Leaves a line for every time that the text is turned into ids."""

    def _encode(self, files: dict[str, Path], folder: Path) -> None:
        with Path(self.root, "written").open("a") as file:
            file.write("once\n")
        super()._encode(files, folder)


class Save(pl.Callback):
    """Writes a checkpoint after two steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def train(processes: int, folder: Path, resume: bool = False) -> dict[str, Any]:
    """Return the weights after four steps, the memory after two, and the figures of the evaluations."""
    torch.manual_seed(0)
    net = DEQTransformer(
        92, 8, 2, 12, (20, 40), 2, 5, dropout=0.0, init_std=None, solver=FixedPointIteration(6, rtol=0.0)
    )
    task = LanguageModeling(net, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    data = Counted(
        str(folder / "wikitext-2"),
        vocab_size=92,
        batch_size=8 // processes,
        eval_batch_size=4 // processes,
        segment_length=30,
    )
    path = folder / f"{processes}.ckpt"
    trainer = pl.Trainer(
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        max_steps=4,
        val_check_interval=3,
        callbacks=[UPG(k=3), *([] if resume else [Save(path)])],
        **QUIET,
    )
    trainer.fit(task, datamodule=data, ckpt_path=path if resume else None)
    validated = {name: value.item() for name, value in trainer.callback_metrics.items()}
    (tested,) = trainer.test(task, datamodule=data, verbose=False)
    saved = torch.load(path, weights_only=True)["memory"]
    return {"weights": task.state_dict(), "saved": saved, "figures": validated | tested}
