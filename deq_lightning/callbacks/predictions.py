"""Predictions as a table of comma-separated values."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from deq_lightning.configured import RunError
from deq_lightning.files import replacing


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict` returns as comma-separated values, one row per sample, while it runs.

    Where the data has names, each row also has the sample's file, and the name of the class that is predicted; where
    the data has `sample_columns`, such as how hard a sample is, each row has them too.

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
        """Append the rows of a batch, each with the index of its sample, or of the row where rows are not samples."""
        del pl_module, batch, batch_idx
        data = getattr(trainer, "datamodule", None)
        sets = getattr(data, "test_names", ())
        columns = _named({name: values.tolist() for name, values in prediction.items()}, data)
        count = len(next(iter(columns.values())))
        if batch_indices is not None and len(batch_indices) == count:
            facts = {} if sets else _facts(batch_indices, data)
            columns = {"index": list(batch_indices), **facts, **columns}
        else:  # rows are nodes or words
            columns = {"index": list(range(self.rows, self.rows + count)), **columns}
        if sets:
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


def _named(columns: dict[str, list[Any]], data: Any) -> dict[str, list[Any]]:
    """Return the columns, and beside them the name of the class that is predicted where the data has such."""
    classes = getattr(data, "class_names", None)
    if classes is None or "prediction" not in columns:
        return columns
    return columns | {"class": [classes[number] for number in columns["prediction"]]}


def _facts(indices: Sequence[int], data: Any) -> dict[str, list[Any]]:
    """Return what the data knows of some samples: the file of each, and its own columns."""
    files = getattr(data, "file_names", None)
    known: Mapping[str, Sequence[Any]] = {} if files is None else {"file": files}
    known = {**known, **getattr(data, "sample_columns", {})}
    for name, values in known.items():
        if len(values) <= max(indices):
            raise RunError(
                f"`{type(data).__name__}` must have a value of `{name}` for every sample that `predict` sees, got "
                f"{len(values)} values, and none for sample {max(indices)}."
            )
    return {name: [values[index] for index in indices] for name, values in known.items()}
