"""Puzzles in files: tables of text and arrays."""

import csv
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deq_lightning.data.errors import DataError, DatasetNotFoundError, SplitError, brief
from deq_lightning.data.order import derive_seed
from deq_lightning.data.puzzles.base import Pairs

COLUMNS = ("question", "answer")
UNKNOWN = 255  # what no character stands for
CHUNK = 4096


def found(path: Path, name: str, wanted: str) -> Path:
    """Return a file of a data module's `root`.

    Raises:
        DatasetNotFoundError: if it is not there; says what is wanted.
    """
    if not path.is_file():
        raise DatasetNotFoundError(
            f"`{name}` needs {wanted}; there is no `{path}`. Set `root=PATH` to name the folder that holds them."
        )
    return path


def chosen(pairs: Pairs, count: int, seed: int) -> Pairs:
    """Return `count` random puzzles of a test file in their order.

    Raises:
        SplitError: if it has fewer.
    """
    x, y = pairs
    if count > len(x):
        raise SplitError(f"`test_size` must be at most {len(x)}, the number of test puzzles, got {count}.")
    rows = np.sort(np.random.RandomState(derive_seed(seed, 1)).permutation(len(x))[:count])
    return x[rows], y[rows]


def shuffled(pairs: Pairs, seed: int) -> Iterator[Pairs]:
    """Yield the puzzles of a training file in random order, some at a time."""
    x, y = pairs
    order = np.random.RandomState(derive_seed(seed)).permutation(len(x))
    for start in range(0, len(x), CHUNK):
        rows = order[start : start + CHUNK]
        yield x[rows], y[rows]


class Table(NamedTuple):
    """Questions and answers of a file, a row each.

    Attributes:
        path: of the file.
        questions: (rows, characters), the code of each character.
        answers: likewise.
        lines: the number of each row's line.
    """

    path: Path
    questions: np.ndarray
    answers: np.ndarray
    lines: np.ndarray

    def refuse(self, wrong: np.ndarray, must: str) -> None:
        """Raise a DataError that names the first line whose row is wrong, if there is one."""
        if wrong.any():
            raise _bad_line(self.path, self.lines[wrong.argmax()], must)

    def decoded(self, questions: dict[str, int], answers: dict[str, int]) -> Pairs:
        """Return the numbers that the characters of questions and answers stand for.

        Raises:
            DataError: if a character stands for none.
        """
        known = (("question", self.questions, questions), ("answer", self.answers, answers))
        numbers = []
        for column, codes, meanings in known:
            table = np.full(256, UNKNOWN, dtype=np.uint8)
            table[[ord(one) for one in meanings]] = list(meanings.values())
            decoded = table[codes]
            characters = "".join(meanings)
            self.refuse((decoded == UNKNOWN).any(axis=1), f"the {column} must be of the characters {characters!r}")
            numbers.append(decoded.astype(np.int8))
        return numbers[0], numbers[1]


def read_table(path: Path, characters: int | None = None, most: int | None = None, advice: str = "") -> Table:
    """Return the questions and answers of a comma-separated file.

    Args:
        path: the file. Where its first line names the columns `question` and `answer` those are read, otherwise the
            first two.
        characters: of each question and answer. None: as many as the first question has.
        most: rows to read. None: all.
        advice: what to do where the first question has another length.

    Raises:
        DatasetNotFoundError: if the file cannot be read.
        DataError: if it has no rows, or one that is not of that form.
    """
    texts, lines, columns = (bytearray(), bytearray()), array("q"), None
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file)
            for row in rows:
                if columns is None:
                    named = set(COLUMNS) <= set(row)
                    columns = tuple(map(row.index, COLUMNS)) if named else (0, 1)
                    if named:
                        continue
                if len(lines) == most:
                    break
                if row:
                    _add(row, columns, texts, characters, path, rows.line_num, advice if not lines else "")
                    characters = characters or len(texts[0])
                    lines.append(rows.line_num)
    except csv.Error as error:
        raise _bad_line(path, rows.line_num, f"the row must be comma-separated text ({brief(error)})") from error
    except OSError as error:
        raise DatasetNotFoundError(f"`{path}` cannot be read ({brief(error)}). Copy that file again.") from error
    if not lines:
        raise DataError(f"`{path}` must have a row with a question and its answer, got none.")
    questions, answers = (np.frombuffer(text, dtype=np.uint8).reshape(len(lines), -1) for text in texts)
    return Table(path, questions, answers, np.frombuffer(lines, dtype=np.int64))


def _add(
    row: list[str],
    columns: tuple[int, ...],
    texts: tuple[bytearray, bytearray],
    characters: int | None,
    path: Path,
    line: int,
    advice: str,
) -> None:
    """Add question and answer of a row to those before."""
    for name, column, text in zip(COLUMNS, columns, texts, strict=True):
        if column >= len(row):
            raise _bad_line(path, line, "the row must have a question and an answer")
        characters = len(row[column]) if characters is None else characters
        if len(row[column]) != characters or not characters:
            raise _bad_line(
                path, line, f"the {name} must have {characters or 'some'} characters, got {len(row[column])}", advice
            )
        text += row[column].encode("ascii", errors="replace")


def _bad_line(path: Path, line: int, must: str, advice: str = "") -> DataError:
    return DataError(f"line {line} of `{path}`: {must}. {advice or 'Repair that row or leave it out.'}")


def read_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array (count, *shape) of zeros and ones.

    Raises:
        DatasetNotFoundError: if the file cannot be read.
        DataError: if it holds something else.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # whatever reading a damaged file may raise
        raise DatasetNotFoundError(
            f"`{path}` cannot be read, it is damaged or no plain array ({brief(error)}). Unpack or copy it again."
        ) from error
    wanted = f"(count, {', '.join(map(str, shape))})"
    if getattr(values, "shape", (0,))[1:] != shape or not len(values):
        raise DataError(f"`{path}` must hold an array {wanted}, got {getattr(values, 'shape', 'several')}.")
    if values.dtype.kind not in "biuf" or not ((values == 0) | (values == 1)).all():
        raise DataError(f"`{path}` must hold zeros and ones alone, got others.")
    return np.asarray(values).astype(np.int8)
