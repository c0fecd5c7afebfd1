"""Tables in files: comma-separated text and Parquet."""

import csv
import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from deq_lightning.data.errors import DataError, DatasetNotFoundError, brief

MISSING = frozenset({"", "na", "n/a", "nan", "-nan", "null", "none", "?"})
MOST_SHOWN = 30  # characters of a cell, columns of a list
REPAIR = "Repair that row or leave it out."


class Places(NamedTuple):
    """Where rows are.

    Attributes:
        source: the file.
        unit: what its numbers count, lines or rows.
        numbers: (rows,) counted from 1.
    """

    source: str
    unit: str
    numbers: np.ndarray

    def of(self, row: int) -> str:
        """Return the place of a row in words."""
        return f"{self.unit} {self.numbers[row]} of `{self.source}`"


class Column(NamedTuple):
    """A column of a table: numbers, or texts.

    Attributes:
        name: of the column.
        values: (rows,) of float64, or of str objects.
        where: the place of each row, such as "line 7 of `x.csv`".
    """

    name: str
    values: np.ndarray
    where: Places

    @property
    def is_text(self) -> bool:
        """Whether these are texts."""
        return self.values.dtype == object

    def refuse(self, row: int, must: str, advice: str = REPAIR) -> NoReturn:
        """Raise a DataError that names the place of a row."""
        raise DataError(f"{self.where.of(row)}, column `{shown(self.name)}`: {must}. {advice}")

    def part(self, rows: np.ndarray) -> "Column":
        """Return some of the rows."""
        return Column(self.name, self.values[rows], self.where._replace(numbers=self.where.numbers[rows]))


class Cells(NamedTuple):
    """A table as it is written.

    Attributes:
        names: of the columns.
        columns: the text of every cell, column by column.
        where: the place of each row.
    """

    names: list[str]
    columns: Sequence[Sequence[str]]
    where: Places

    def column(self, name: str, argument: str, is_text: bool | None = None) -> Column:
        """Return a column as numbers or texts.

        Args:
            name: of the column.
            argument: that asks for it.
            is_text: whether it holds texts. None: what `typed` says.

        Raises:
            DataError: if there is none of that name, or a cell has no value.
        """
        if name not in self.names:
            near = get_close_matches(name, self.names, n=1, cutoff=0.5)
            guess = f" Did you mean `{shown(near[0])}`?" if near else ""
            known = ", ".join(map(shown, self.names[:MOST_SHOWN])) + (", ..." if len(self.names) > MOST_SHOWN else "")
            source = self.where.source
            raise DataError(
                f"`{argument}` names `{shown(name)}`, and `{source}` has no such column.{guess} Known: {known}."
            )
        return typed(name, self.columns[self.names.index(name)], self.where, is_text)


def read_cells(path: Path) -> Cells:
    """Return the table of a file, as text.

    Raises:
        DatasetNotFoundError: if the file is not there or cannot be read.
        DataError: if it has no rows, rows of other lengths than the first, or two columns of one name.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"there is no file `{path}`. Set `path=FILE` to a table, .csv or .parquet.")
    reader = {".csv": _read_csv, ".parquet": _read_parquet}.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"`{path}` must be a table, .csv or .parquet. Save it as one of them.")
    try:
        cells = reader(path)
    except DataError:
        raise
    except OSError as error:
        raise DatasetNotFoundError(f"`{path}` cannot be read ({brief(error)}). Copy that file again.") from error
    _check_names(path, cells.names)
    if not len(cells.where.numbers):
        raise DataError(f"`{path}` must have a line of column names and rows below it, got no rows.")
    return cells


def _check_names(path: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        if not name:
            raise DataError(
                f"`{path}` must name every column, got no name for number {number + 1}. Name it, or leave it out: an "
                "index of pandas with `to_csv(index=False)`."
            )
        if name in names[:number]:
            raise DataError(f"`{path}` must have one column of each name, got two of `{shown(name)}`. Rename one.")


def _read_csv(path: Path) -> Cells:
    rows: list[list[str]] = []
    lines: list[int] = []
    with path.open("rb") as file:
        reader = csv.reader(_decoded(file, path), strict=True)
        try:
            for row in reader:
                if not row:
                    continue  # an empty line
                if rows and len(row) != len(rows[0]):
                    raise DataError(
                        f"line {reader.line_num} of `{path}` must have {len(rows[0])} cells, as the first line has, "
                        f"got {len(row)}. {REPAIR}"
                    )
                rows.append(row)
                lines.append(reader.line_num)
        except csv.Error as error:
            raise DataError(
                f"line {reader.line_num} of `{path}` must be comma-separated text ({brief(error)}). {REPAIR}"
            ) from error
    names = [name.strip() for name in rows[0]] if rows else []
    return Cells(
        names, list(zip(*rows[1:], strict=True)), Places(str(path), "line", np.array(lines[1:], dtype=np.int64))
    )


def _decoded(file: Any, path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"line {number} of `{path}` must be UTF-8 text ({brief(error)}). Save it as UTF-8."
            ) from error


def _read_parquet(path: Path) -> Cells:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"`{path}` needs `pyarrow` to be read. Type `pip install pyarrow`, or save the table as .csv."
        ) from error
    try:
        table = parquet.read_table(path)
        columns = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in table.columns]
    except Exception as error:  # whatever reading a damaged file may raise
        raise DatasetNotFoundError(
            f"`{path}` cannot be read, it is damaged or no Parquet file ({brief(error)}). Copy that file again."
        ) from error
    places = Places(str(path), "row", np.arange(1, table.num_rows + 1))
    return Cells(list(map(str, table.column_names)), list(columns), places)


def typed(name: str, cells: Sequence[Any], where: Places, is_text: bool | None = None) -> Column:
    """Return cells as numbers if most of them are, otherwise as texts.

    Args:
        name: of the column.
        cells: texts, or numbers.
        where: their places.
        is_text: what they must be. None: that is found out.

    Raises:
        DataError: if a cell is empty, or is no finite number where the others are numbers.
    """
    texts = [str(cell).strip() for cell in cells]
    numbers = [number(text) for text in texts]
    if is_text is None:
        known = [value for text, value in zip(texts, numbers, strict=True) if text.lower() not in MISSING]
        is_text = 2 * sum(value is not None for value in known) < len(known)
    column = Column(name, np.array(texts if is_text else numbers, dtype=object), where)
    for row, (text, value) in enumerate(zip(texts, numbers, strict=True)):
        if text == "" or (not is_text and text.lower() in MISSING):
            column.refuse(row, f"a value is missing, got {text!r}")
        if not is_text and (value is None or not math.isfinite(value)):
            column.refuse(row, f"must be a finite number, as the others are, got {shown(text)!r}")
    return column if is_text else column._replace(values=column.values.astype(np.float64))


def number(text: str) -> float | None:
    """Return the number that a text is, or None if it is none."""
    try:
        return None if "_" in text else float(text)  # Python's digits may be grouped by it
    except ValueError:
        return None


def shown(text: str) -> str:
    """Return the begin of a text, for use in a message."""
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."
