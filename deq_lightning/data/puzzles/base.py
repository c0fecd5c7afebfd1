"""What puzzles share: splits without a puzzle in common, test sets of several sizes, and symmetries."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deq_lightning.configured import sizes
from deq_lightning.data.base import DataModule
from deq_lightning.data.errors import SplitError
from deq_lightning.data.order import SeededDraws

Pairs = tuple[np.ndarray, np.ndarray]  # puzzles and the labels of their positions, as small integers
Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

IDLE = 10  # draws without a new puzzle, as a multiple of the puzzles found, after which hardly any is left
SYMMETRIES = 8  # of a square


class PuzzleSet(Dataset[Any]):
    """Puzzles and labels in memory, as bytes: only what is asked for takes the size of its type.

    Args:
        pairs: puzzles and the labels of their positions.
        dtype: of the puzzles; labels are int64.
        transform: makes another puzzle of a puzzle and its labels.
    """

    def __init__(self, pairs: Pairs, dtype: torch.dtype, transform: Transform | None = None) -> None:
        self.x, self.y = map(torch.as_tensor, pairs)
        self.dtype = dtype
        self.transform = transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.x[index].to(self.dtype), self.y[index].long()
        return (x, y) if self.transform is None else self.transform(x, y)


class Puzzles(DataModule):
    """Base class of data modules of puzzles in memory: an item is (x, y), with a label in y for each position.

    To derive one, implement `test_names`, `_training` and `_tests`. Each test set has a loader of its own, in the order
    of `test_names`. No puzzle of a split is in another.

    Args:
        options: those of `DataModule`; `seed` fixes the puzzles and their random symmetries as well.

    Raises:
        ValueError: if an argument is out of its range.
        SplitError: from `setup`, if there are too few different puzzles.
    """

    in_memory: ClassVar[bool] = True
    unit = "puzzles"
    dtype: ClassVar[torch.dtype] = torch.float32
    transform: Transform | None = None  # of training puzzles

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.test_sets: dict[str, Dataset[Any]] = {}

    @property
    @abstractmethod
    def test_names(self) -> list[str]:
        """Names of the test sets, in the order of their loaders."""

    @abstractmethod
    def _training(self) -> tuple[Pairs, Pairs]:
        """Return the puzzles that train and those that validate."""

    @abstractmethod
    def _tests(self) -> Iterable[Pairs]:
        """Return the puzzles of each test set."""

    def setup(self, stage: str | None = None) -> None:
        """Make the splits that `stage` needs and that are not there yet, or all of them for None."""
        if stage in ("fit", "validate", None) and self.train_set is None:
            train, val = self._training()
            puzzles = PuzzleSet(train, self.dtype, self.transform)
            self.train_set = SeededDraws(puzzles, self.seed) if self.transform else puzzles
            self.val_set = PuzzleSet(val, self.dtype)
        if stage in ("test", "predict", None) and not self.test_sets:
            tests = zip(self.test_names, self._tests(), strict=True)
            self.test_sets = {name: PuzzleSet(pairs, self.dtype) for name, pairs in tests}

    def split_sizes(self) -> dict[str, int]:
        """Return the number of puzzles in each split that `setup` has filled; `test` is that of all test sets."""
        tests = sum(len(cast(Sized, part)) for part in self.test_sets.values())
        return super().split_sizes() | ({"test": tests} if tests else {})

    def test_dataloader(self) -> list[DataLoader[Any]]:  # type: ignore[override]  # Lightning takes one or several
        """Return a loader for each test set."""
        if not self.test_sets:
            raise RuntimeError(
                f"`{type(self).__name__}.test_sets` is empty. Call `setup()` before asking for a loader."
            )
        options = {"batch_size": self.eval_batch_size, **self._loader_options()}
        return [self.eval_loader(part, **options) for part in self.test_sets.values()]

    def predict_dataloader(self) -> list[DataLoader[Any]]:  # type: ignore[override]
        """Return a loader for each test set."""
        return self.test_dataloader()


class SeveralSizes(Puzzles):
    """Base class of puzzles that are trained at one size and tested at several.

    To derive one, implement `_stream` and `_named`.

    Args:
        size: of the training and validation puzzles.
        test_sizes: sizes of the test sets.
        train_size: puzzles that train, 1 or more.
        val_size: puzzles that validate, 1 or more.
        test_size: puzzles of each test set, 1 or more.
        options: those of `Puzzles`.
    """

    def __init__(
        self, size: int, test_sizes: Sequence[int], train_size: int, val_size: int, test_size: int, **options: Any
    ) -> None:
        super().__init__(**options)
        sizes(1, train_size=train_size, val_size=val_size, test_size=test_size)
        self.size = size
        self.test_sizes = list(test_sizes)
        self.train_size = train_size
        self.val_size = val_size
        self.test_size = test_size

    @property
    def test_names(self) -> list[str]:
        """Sizes of the test sets, in the order of their loaders."""
        return list(map(str, self.test_sizes))

    @abstractmethod
    def _stream(self, size: int) -> Iterator[Pairs]:
        """Yield random puzzles of a size, some at a time and the same ones each time."""

    @abstractmethod
    def _named(self, size: int) -> str:
        """Say what the puzzles of a size are, for messages."""

    def _training(self) -> tuple[Pairs, Pairs]:
        # The test set of this size comes first in its stream, so that it can be made without the others.
        counts = {"test_size": self.test_size} if self.size in self.test_sizes else {}
        counts |= {"val_size": self.val_size, "train_size": self.train_size}
        *_, val, train = self._different(self.size, counts)
        return train, val

    def _tests(self) -> Iterable[Pairs]:
        return [self._different(size, {"test_size": self.test_size})[0] for size in self.test_sizes]

    def _different(self, size: int, counts: Mapping[str, int]) -> list[Pairs]:
        return different(self._stream(size), self._named(size), counts)


def no_twice(**values: Sequence[int]) -> None:
    """Raise a ValueError that names the first of `values` that has an entry twice."""
    for name, value in values.items():
        if len(set(value)) < len(value):
            raise ValueError(f"`{name}` must be different numbers, got {list(value)}.")


def different(
    stream: Iterable[Pairs], what: str, counts: Mapping[str, int], besides: Iterable[np.ndarray] = ()
) -> list[Pairs]:
    """Return the first puzzles of a stream that all differ, in as many parts as there are counts.

    Args:
        stream: some puzzles at a time; it may end, and is given up where it hardly ever has a new one.
        what: the puzzles in words, for the message.
        counts: puzzles of each part, by the name of the argument that says so.
        besides: puzzles that are left out.

    Raises:
        SplitError: if the stream has too few different ones.
    """
    seen = {puzzle.tobytes() for puzzle in besides}
    kept: list[Pairs] = []
    found = idle = 0
    wanted = sum(counts.values())
    for x, y in stream:
        fresh = []
        for row, key in enumerate(puzzle.tobytes() for puzzle in x):
            if key not in seen:
                seen.add(key)
                fresh.append(row)
        kept.append((x[fresh], y[fresh]))
        found += len(fresh)
        idle = 0 if fresh else idle + len(x)
        if found >= wanted or idle > IDLE * max(found, IDLE):
            break
    if found < wanted:
        names, numbers = " + ".join(f"`{name}`" for name in counts), " + ".join(map(str, counts.values()))
        raise SplitError(f"{names} must be at most {found}, the number of different {what}, got {numbers}.")
    x, y = (np.concatenate(parts)[:wanted] for parts in zip(*kept, strict=True))
    cuts = np.cumsum(list(counts.values()))[:-1]
    return list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))


def turned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two squares, whose last two dimensions are rows and columns, turned and mirrored together at random."""
    number = int(torch.randint(SYMMETRIES, ()))
    x, y = (part.flip(-1) if number % 2 else part for part in (x, y))
    return torch.rot90(x, number // 2, (-2, -1)), torch.rot90(y, number // 2, (-2, -1))
