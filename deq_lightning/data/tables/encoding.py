"""How the columns of a table become numbers, as the training rows say."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deq_lightning.configured import is_number
from deq_lightning.data.errors import DataError
from deq_lightning.data.tables.reading import Cells, Column, shown

MOST_CATEGORIES = 256  # of a column; one with more is a name or a number of its row, not a kind


class Scale(NamedTuple):
    """A column of numbers, standardised.

    Attributes:
        name: of the column.
        mean: of the training rows.
        std: likewise; 1 where they are all the same.
    """

    name: str
    mean: float
    std: float

    @property
    def is_text(self) -> bool:
        """Whether its values are texts."""
        return False

    @property
    def width(self) -> int:
        """How many numbers a value becomes."""
        return 1

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return (values, 1)."""
        return (values[:, None] - self.mean) / self.std


class OneHot(NamedTuple):
    """A column of texts, a 1 for the category and 0 for the others; all 0 for one that the training rows lack.

    Attributes:
        name: of the column.
        categories: of the training rows, sorted.
    """

    name: str
    categories: list[str]

    @property
    def is_text(self) -> bool:
        """Whether its values are texts."""
        return True

    @property
    def width(self) -> int:
        """How many numbers a value becomes."""
        return len(self.categories)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return (values, categories)."""
        return (values[:, None] == np.array(self.categories, dtype=object)).astype(np.float64)


def fitted(column: Column) -> Scale | OneHot:
    """Return the encoding of a column of training rows.

    Raises:
        DataError: if it has too many categories.
    """
    if not column.is_text:
        std = float(column.values.std())
        return Scale(column.name, float(column.values.mean()), std if std > 0 else 1.0)
    categories = sorted(set(column.values))
    if len(categories) > MOST_CATEGORIES:
        raise DataError(
            f"column `{shown(column.name)}` of `{column.where.source}` must have {MOST_CATEGORIES} different texts or "
            f"fewer, got {len(categories)}. Name the others with `columns=[...]`."
        )
    return OneHot(column.name, categories)


class Encoding(NamedTuple):
    """How a table becomes rows of numbers and what is predicted of them.

    Attributes:
        columns: of each column that is used.
        targets: names of those that are predicted.
        classes: names of the classes. None: numbers are predicted.
    """

    columns: list[Scale | OneHot]
    targets: list[str]
    classes: list[str] | None

    @property
    def width(self) -> int:
        """Numbers per row."""
        return sum(column.width for column in self.columns)

    def rows(self, cells: Cells) -> Tensor:
        """Return (rows, width).

        Raises:
            DataError: if a column is missing, or a value in it.
        """
        columns = [(one, cells.column(one.name, "checkpoint", one.is_text)) for one in self.columns]
        encoded = np.concatenate([one.encode(column.values) for one, column in columns], axis=1)
        return torch.as_tensor(encoded, dtype=torch.float32)

    def plain(self) -> dict[str, Any]:
        """Return plain data that `of_plain` makes the encoding of."""
        columns = [one._asdict() for one in self.columns]
        return {"columns": columns, "targets": self.targets, "classes": self.classes}


def of_plain(state: Mapping[str, Any]) -> Encoding:
    """Return the encoding that a checkpoint holds.

    Raises:
        DataError: if it holds something else.
    """
    try:
        columns = [OneHot(**one) if "categories" in one else Scale(**one) for one in state["columns"]]
        found = Encoding(columns, list(state["targets"]), state["classes"])
        sound = all(map(_is_sound, columns)) and _are_names(found.targets) and _are_names(found.classes or [])
    except (LookupError, TypeError):
        sound = False
    if not sound or not columns:
        raise DataError("the checkpoint must say how the columns of the table become numbers. Use another.")
    return found


def _is_sound(one: Scale | OneHot) -> bool:
    if not isinstance(one.name, str):
        return False
    if isinstance(one, OneHot):
        return _are_names(one.categories)
    return is_number(one.mean) and is_number(one.std) and one.std > 0


def _are_names(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def as_classes(column: Column) -> Column:
    """Return a column with the name of the class in place of every number."""
    if column.is_text:
        return column
    return column._replace(values=np.array([_name(value) for value in column.values.tolist()], dtype=object))


def classes_of(column: Column) -> list[str]:
    """Return the names of the classes in a column, texts in their order and numbers in theirs."""
    return [_name(value) for value in sorted(set(column.values.tolist()))]


def _name(value: Any) -> str:
    return value if isinstance(value, str) else str(int(value)) if value.is_integer() else repr(value)


def numbered(column: Column, classes: Sequence[str]) -> np.ndarray:
    """Return the number of the class of every row.

    Raises:
        DataError: if one is not among the classes.
    """
    number = {name: index for index, name in enumerate(classes)}
    values = as_classes(column).values
    for row, value in enumerate(values):
        if value not in number:
            column.refuse(row, f"must be a class that was trained on, got {shown(value)!r}")
    return np.array([number[value] for value in values], dtype=np.int64)
