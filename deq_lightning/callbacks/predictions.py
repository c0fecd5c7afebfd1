"""Predictions as a table of comma-separated values."""

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from deq_lightning.files import replacing


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict` returns as comma-separated values, one row per sample, while it runs.

    Where the data has names, each row also has the sample's file, and the name of the class that is predicted.

    Args:
        path: the file; an existing one is replaced once the new one is complete. None: `predictions.csv` beside the
            checkpoint, or in the current folder. With several processes each writes its own, `predictions-1.csv` and so
            on.

    Raises:
        ValueError: if `path` is a folder.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        if path is not None and (not path or Path(path).is_dir()):
            raise ValueError(f"`path` must be a file, got {path or repr(path)}. Add a name, such as predictions.csv.")
        self.path = path
        self.rows = 0
        self._open = ExitStack()
        self._writer: Any = None

    def file(self, trainer: pl.Trainer) -> Path:
        """Return the file that this process writes."""
        path = Path(self.path or "predictions.csv")
        return path if trainer.global_rank == 0 else path.with_stem(f"{path.stem}-{trainer.global_rank}")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a draft of the file."""
        del pl_module
        self.rows = 0
        file = self.file(trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._writer = csv.writer(self._open.enter_context(replacing(file, "w", newline="")))

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
        del pl_module, batch, batch_idx
        columns = {name: values.tolist() for name, values in prediction.items()}
        count = len(next(iter(columns.values())))
        indices = list(batch_indices or range(self.rows, self.rows + count))
        data = getattr(trainer, "datamodule", None)
        columns = {"index": indices, **_named(columns, indices, data)}
        if sets := getattr(data, "test_names", ()):
            columns = {"set": [sets[dataloader_idx]] * count, **columns}
        if self.rows == 0:
            self._writer.writerow(columns)
        self._writer.writerows(zip(*columns.values(), strict=True))
        self.rows += count

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the table in its place, and print the number of predictions and its path."""
        del pl_module
        self._open.close()
        print(f"{self.rows} predictions: {self.file(trainer)}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the draft up; a table from before stays as it was."""
        del trainer, pl_module
        self._open.__exit__(type(exception), exception, exception.__traceback__)


def _named(columns: dict[str, list[Any]], indices: list[int], data: Any) -> dict[str, list[Any]]:
    """Return the columns, and beside them the file of each sample and the name of its class where the data has such."""
    files, classes = getattr(data, "file_names", None), getattr(data, "class_names", None)
    if files is not None and max(indices) < len(files):  # rows may be nodes or pixels, and not samples
        columns = {"file": [files[index] for index in indices], **columns}
    if classes is not None and "prediction" in columns:
        columns = columns | {"class": [classes[number] for number in columns["prediction"]]}
    return columns
