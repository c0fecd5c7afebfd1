"""Predictions as a table: of comma-separated values, or a line of JSON for each row."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from deq_lightning.configured import CombinationError, RunError
from deq_lightning.files import replacing

Columns = dict[str, list[Any]]
LINES = ".jsonl"
PICTURE = "picture"


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict` returns as comma-separated values, one row per sample, while it runs.

    Where the data has names, each row also has the sample's file, and the name of the class that is predicted; where
    the data has `sample_columns`, such as how hard a sample is, each row has them too.

    Args:
        path: the file; an existing one is replaced once the new one is complete. One that ends in `.jsonl` has a line
            of JSON for each row instead. None: `predictions.csv` beside the checkpoint, or in the current folder. With
            several processes each writes its own, `predictions-1.csv` and so on.
        probabilities: whether each row also has the probability of every class, `probability_NAME`.
        pictures: whether each row also has a picture, `INDEX.png` in a folder named as the file without its ending: of
            an image that was found, with the observation on its left and, where it is known, the image on its right.

    Raises:
        ValueError: if `path` is a folder.
        CombinationError: while it runs, if `probabilities` or `pictures` are wanted and the task has none.
    """

    def __init__(self, path: str | None = None, probabilities: bool = False, pictures: bool = False) -> None:
        super().__init__(write_interval="batch")
        if path is not None and (not path or Path(path).is_dir()):
            raise ValueError(f"`path` must be a file, got {path or repr(path)}. Add a name, such as predictions.csv.")
        self.path = path
        self.probabilities = probabilities
        self.pictures = pictures
        self.rows = 0
        self._open = ExitStack()
        self._write: Callable[[Columns, bool], None]

    def file(self, trainer: pl.Trainer) -> Path:
        """Return the file that this process writes."""
        path = Path(self.path or "predictions.csv")
        return path if trainer.global_rank == 0 else path.with_stem(f"{path.stem}-{trainer.global_rank}")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a draft of the file."""
        if self.probabilities:
            pl_module.every_probability = True  # type: ignore[assignment]
        if self.pictures:
            pl_module.every_picture = True  # type: ignore[assignment]
        self.rows = 0
        path = self.file(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files need not be text.
        options = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
        file = self._open.enter_context(replacing(path, "w", **options))
        self._write = (_lines if path.suffix.lower() == LINES else _table)(file)

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
        del batch, batch_idx
        data = getattr(trainer, "datamodule", None)
        sets, classes = getattr(data, "test_names", ()), _classes(data, pl_module)
        own = {name: values.tolist() for name, values in prediction.items() if name != PICTURE}
        columns = _named(own, classes)
        if self.probabilities:
            columns = _spread(columns, classes, type(pl_module).__name__)
        count = len(next(iter(columns.values())))
        taken: Sequence[int] | None = getattr(data, "taken", None)
        if taken is not None:  # new inputs, of which some may have been left out
            batch_indices = taken[self.rows : self.rows + count]
        if batch_indices is not None and len(batch_indices) == count:
            facts = {} if sets else _facts(batch_indices, data)
            columns = {"index": list(batch_indices), **facts, **columns}
        else:  # rows are nodes or words
            columns = {"index": list(range(self.rows, self.rows + count)), **columns}
        if self.pictures:
            _draw(prediction, columns["index"], self.file(trainer).with_suffix(""), type(pl_module).__name__)
        if sets:
            columns = {"set": [sets[dataloader_idx]] * count, **columns}
        self._write(columns, self.rows == 0)
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


def _draw(prediction: Mapping[str, Tensor], indices: Sequence[int], folder: Path, task: str) -> None:
    """Write the pictures of a batch."""
    if PICTURE not in prediction:
        raise CombinationError(f"`pictures` need images that are found, which `{task}` has not. Leave them out.")
    from torchvision.transforms.functional import to_pil_image

    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in zip(indices, prediction[PICTURE], strict=True):
        to_pil_image(picture.cpu()).save(folder / f"{index}.png")


def _table(file: IO[str]) -> Callable[[Columns, bool], None]:
    writer = csv.writer(file)

    def write(columns: Columns, first: bool) -> None:
        if first:
            writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))

    return write


def _lines(file: IO[str]) -> Callable[[Columns, bool], None]:
    def write(columns: Columns, first: bool) -> None:
        del first
        for row in zip(*columns.values(), strict=True):
            # JSON has no word for what is not finite.
            plain = (None if isinstance(value, float) and not math.isfinite(value) else value for value in row)
            file.write(json.dumps(dict(zip(columns, plain, strict=True)), ensure_ascii=False) + "\n")

    return write


def _classes(data: Any, task: Any) -> Sequence[str] | None:
    """Return the names of the classes, where the data or the task knows them."""
    names = getattr(data, "class_names", None)
    return getattr(task, "class_names", None) if names is None else names


def _spread(columns: Columns, classes: Sequence[str] | None, task: str) -> Columns:
    """Return the columns with one of its own for the probability of each class."""
    rows = columns.pop("probabilities", None)
    if rows is None:
        raise CombinationError(f"`probabilities` need one class for each row, which `{task}` has not. Leave them out.")
    names = range(len(rows[0])) if classes is None else classes
    of_classes = zip(names, zip(*rows, strict=True), strict=True)
    return columns | {f"probability_{name}": list(values) for name, values in of_classes}


def _named(columns: Columns, classes: Sequence[str] | None) -> Columns:
    """Return the columns, and beside them the name of the class that is predicted where the classes have names."""
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
