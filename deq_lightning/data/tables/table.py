"""A table of numbers and texts in a file."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from deq_lightning.configured import listed, one_of
from deq_lightning.data.base import DataModule, Size, check_sizes
from deq_lightning.data.errors import DataError, SplitError
from deq_lightning.data.inputs import NewInputs
from deq_lightning.data.tables.encoding import Encoding, classes_of, fitted, numbered, of_plain
from deq_lightning.data.tables.reading import Cells, Column, Places, read_cells, shown
from deq_lightning.data.tables.splits import SPLITS, named, split
from deq_lightning.samples import ROW_LABELS, ROW_NUMBERS, ROWS, Samples

Task = Literal["classification", "regression", "multilabel"]
LABELS = (0.0, 1.0)
FEW_NUMBERS = 20  # different whole numbers of a target that are taken for classes


class Table(DataModule):
    """Your own table: a .csv file with the names of its columns in the first line, or a .parquet file.

    Columns of numbers are standardised with mean and standard deviation of the training rows. Columns of texts become a
    number for each category of the training rows, 1 or 0; a category that these lack is all zeros. A column is one of
    numbers where most of its values are, and then all must be. A value that is missing or not finite is refused.

    What the training rows say of the columns is kept in checkpoints, and used for `test` and `predict`.

    Args:
        path: the file: comma-separated UTF-8 text, or Parquet (`pip install pyarrow`).
        target: column to predict, or a list of columns of numbers, or of labels.
        columns: columns to predict from. None: all others.
        task: `classification`, `regression`, or `multilabel`, where each target says 1 or 0 whether a row has that
            label. None: classification where the target has texts, or at most 20 different values, all whole numbers;
            otherwise, and for several targets, regression.
        val_size: rows that validate: their number, or their share of all, in (0, 1).
        test_size: rows that test, likewise; the rest trains. In classification every split holds the classes in the
            same proportions.
        split_column: column that says `train`, `val` or `test` of every row. None: the sizes say it.
        batch_size: training rows per step and device, 1 or more.
        eval_batch_size: rows per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that load rows; by default 0, because the rows are in memory.
        seed: fixes the splits and the order of the training rows, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `samples`, `prepare_data` and `setup`, if the file is missing or damaged.
        DataError: likewise, if columns or values are missing, or there is nothing to learn.
        SplitError: likewise, if the sizes do not fit the table.
    """

    in_memory: ClassVar[bool] = True
    unit = "rows"

    def __init__(
        self,
        path: str,
        target: str | list[str],
        columns: list[str] | None = None,
        task: Task | None = None,
        val_size: Size = 0.15,
        test_size: Size = 0.2,
        split_column: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_sizes(val_size=val_size, test_size=test_size)
        if task is not None:
            one_of(get_args(Task), task=task)
        self.targets = [target] if isinstance(target, str) else target
        listed(1, target=self.targets, columns=self.targets if columns is None else columns)
        _check_apart(self.targets, columns or [], split_column)
        self.path = Path(path)
        self.columns = columns
        self.task = task
        self.val_size = val_size
        self.test_size = test_size
        self.split_column = split_column
        self._encoding: Encoding | None = None

    @property
    def samples(self) -> Samples:
        """Description of the rows."""
        encoding = self.encoding
        if self.task == "multilabel":
            return Samples(ROW_LABELS, features=encoding.width, classes=len(encoding.targets))
        if encoding.classes is None:
            return Samples(ROW_NUMBERS, features=encoding.width, targets=len(encoding.targets))
        return Samples(ROWS, features=encoding.width, classes=len(encoding.classes))

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, texts in their order and numbers in theirs, or of the labels."""
        return self.encoding.targets if self.task == "multilabel" else self.encoding.classes

    @property
    def target_names(self) -> Sequence[str]:
        """Names of the columns that are predicted."""
        return self.encoding.targets

    def target_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and standard deviation of each target over the training rows."""
        y = self._numbers[self._rows["train"]]
        return y.mean(axis=0).tolist(), y.std(axis=0).tolist()

    @property
    def encoding(self) -> Encoding:
        """What the training rows say of the columns, or those of the checkpoint did."""
        if self._encoding is None:
            self._encoding = self._fitted()
        return self._encoding

    def prepare_data(self) -> None:
        """Read the table, so that a bad file stops the run at its start."""
        _ = self.encoding

    def setup(self, stage: str | None = None) -> None:
        """Split and encode the table, whatever the stage."""
        del stage  # all three splits are in memory
        x = self.encoding.rows(self._cells)
        y = torch.as_tensor(self._numbers)
        y = y if self.encoding.classes is not None else y.float()
        rows = [torch.as_tensor(self._rows[name]) for name in SPLITS]
        self.train_set, self.val_set, self.test_set = (TensorDataset(x[part], y[part]) for part in rows)

    def prepare(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return new rows as the network takes them, (rows, features).

        Args:
            rows: the values of each row by the names of the columns.

        Raises:
            DataError: if a value is missing, or is no number where the training rows have numbers.
        """
        names = [one.name for one in self.encoding.columns]
        columns = [[row.get(name, "") for row in rows] for name in names]
        return self.encoding.rows(Cells(names, columns, Places("rows", "row", np.arange(1, len(rows) + 1))))

    def inputs(self, path: str) -> NewInputs:
        """Return the rows of another table, which needs no target; their names are its lines."""
        cells = read_cells(Path(path).expanduser())
        x = self.encoding.rows(cells)
        return NewInputs(self, path, [f"{cells.where.unit} {number}" for number in cells.where.numbers], x.__getitem__)

    def state_dict(self) -> dict[str, Any]:
        """Return what the training rows say of the columns, for checkpoints."""
        return self.encoding.plain()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Encode with what the training rows of a checkpoint said.

        Raises:
            DataError: if it does not say that, or the table has no such columns.
        """
        encoding = of_plain(state_dict)
        if encoding == self._encoding:
            return
        self._encoding = encoding
        self.__dict__.pop("_numbers", None)
        if self.train_set is not None:
            self.setup()

    @cached_property
    def _cells(self) -> Cells:
        return read_cells(self.path)

    @cached_property
    def _numbers(self) -> np.ndarray:
        """(rows,) classes, or (rows, targets) numbers."""
        targets = [self._cells.column(name, "target") for name in self.encoding.targets]
        if self.encoding.classes is not None:
            return numbered(targets[0], self.encoding.classes)
        return np.stack([one.values for one in targets], axis=1)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """Rows of each split."""
        targets = [self._cells.column(name, "target") for name in self.targets]
        if self.split_column is not None:
            return named(self._cells.column(self.split_column, "split_column", is_text=True))
        sizes = {"val": self.val_size, "test": self.test_size}
        count, classes = len(self._cells.where.numbers), self._classes(targets)
        if classes is None:
            return split(count, sizes, self.seed)
        return split(count, sizes, self.seed, numbered(targets[0], classes), classes)

    def _fitted(self) -> Encoding:
        apart = {*self.targets, self.split_column}
        names = [one for one in self._cells.names if one not in apart] if self.columns is None else self.columns
        columns = [self._cells.column(name, "columns") for name in names]
        targets = [self._cells.column(name, "target") for name in self.targets]
        if not columns:
            raise DataError(f"`{self.path}` must have a column to predict from beside the target, got none.")
        rows = self._rows["train"]
        classes = self._classes(targets)
        for target in targets:
            _check_learnable(target.part(rows), target if classes else None)
        return Encoding([fitted(column.part(rows)) for column in columns], self.targets, classes)

    def _classes(self, targets: Sequence[Column]) -> list[str] | None:
        """Return the names of the classes, or None for numbers to predict."""
        task = self.task or _task_of(targets)
        for target in targets:
            if task == "regression" and target.is_text:
                target.refuse(0, "must be a number for `task=regression`", "Set `task=classification`.")
            wrong = ~np.isin(target.values, LABELS) if task == "multilabel" else np.zeros(1, bool)
            if wrong.any():
                target.refuse(
                    int(wrong.argmax()), "must be 0 or 1 for `task=multilabel`", "Leave that column out of `target`."
                )
        if task == "classification" and len(targets) > 1:
            raise DataError("`target` must be one column for `task=classification`. Leave the others out.")
        return classes_of(targets[0]) if task == "classification" else None


def _task_of(targets: Sequence[Column]) -> Task:
    if len(targets) > 1:
        return "regression"
    values = targets[0].values
    few = targets[0].is_text or (len(np.unique(values)) <= FEW_NUMBERS and bool((values == np.round(values)).all()))
    return "classification" if few else "regression"


def _check_apart(targets: Sequence[str], columns: Sequence[str], split_column: str | None) -> None:
    """Raise a ValueError that names a column that is used twice."""
    used = [*targets, *columns, *([] if split_column is None else [split_column])]
    for name in used:
        if used.count(name) > 1:
            raise ValueError(
                f"`target`, `columns` and `split_column` must name each column once, got `{name}` twice. Leave one out."
            )


def _check_learnable(training: Column, every: Column | None) -> None:
    """Raise a DataError if a target is always the same, or if the training rows lack one of its classes."""
    source = f"`{shown(training.name)}` of `{training.where.source}`"
    known = set(training.values.tolist())
    if len(known) < 2:
        raise DataError(f"{source} must vary over the training rows, got {next(iter(known), 'none')!r} in all of them.")
    for value in sorted(set(every.values.tolist()) - known) if every else []:
        raise SplitError(
            f"the training rows must have every class of {source}, got none of {value!r}. Move some there."
        )
