"""Predictions as a table of comma-separated values."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict` returns as comma-separated values, one row per sample, while it runs.

    Args:
        path: the file; an existing one is replaced. None: `predictions.csv` beside the checkpoint, or in the current
            folder. With several processes each writes its own, `predictions-1.csv` and so on.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self.rows = 0

    def file(self, trainer: pl.Trainer) -> Path:
        """Return the file that this process writes."""
        path = Path(self.path or "predictions.csv")
        return path if trainer.global_rank == 0 else path.with_stem(f"{path.stem}-{trainer.global_rank}")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with an empty file."""
        del pl_module
        self.rows = 0
        file = self.file(trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: dict[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the rows of a batch, each with the sample's index in its split."""
        del pl_module, batch, batch_idx, dataloader_idx
        columns = {name: values.tolist() for name, values in prediction.items()}
        count = len(next(iter(columns.values())))
        indices = batch_indices or range(self.rows, self.rows + count)
        with self.file(trainer).open("a", newline="") as file:
            writer = csv.writer(file)
            if self.rows == 0:
                writer.writerow(["index", *columns])
            writer.writerows(zip(indices, *columns.values(), strict=True))
        self.rows += count

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the number of predictions and the path of the table."""
        del pl_module
        print(f"{self.rows} predictions: {self.file(trainer)}")
