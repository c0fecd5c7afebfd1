"""Sudoku."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deq_lightning.configured import ascending, several_sizes, sizes
from deq_lightning.data.order import derive_seed
from deq_lightning.data.puzzles.base import Pairs, Puzzles, different
from deq_lightning.data.puzzles.files import Table, chosen, found, read_table, shuffled
from deq_lightning.data.puzzles.grids import Rules
from deq_lightning.samples import PUZZLES, Samples

GRIDS = 288  # of 4x4
TRAINING_GRIDS = 200  # of them, by default
CHECKED = 6  # the largest side for which counting the solutions of a puzzle takes no time
SPLITS = ("test", "val", "train")  # the test puzzles first, so that they can be made without the others


class Sudoku(Puzzles):
    """Sudoku puzzles with one solution each: 4x4 by default, 6x6 with `box` [2, 3], and 9x9 from files.

    x (cells,) holds the digit of each cell by rows, 1 to N, and 0 for a blank; y (cells,) that of the solution less 1.

    Puzzles are generated: digits are taken out of random full grids as long as the solution stays the only one. No grid
    of a split is the solution of a puzzle in another. Or they are read from files like those of Sudoku-Extreme, where
    only the puzzles of the splits differ.

    Args:
        box: rows and columns of a box, 2 or more each; there are N = rows times columns digits, 9 at most.
        clues: fewest and most clues of a generated puzzle; each number is as frequent.
        train_grids: solutions of the generated training puzzles, 1 or more; by default 200 of the 288 of 4x4, where
            the others validate and test, half of them each, and otherwise `train_size`.
        train_size: puzzles that train, 1 or more.
        val_size: puzzles that validate, 1 or more.
        test_size: puzzles that test, 1 or more.
        augment: whether each training puzzle is seen with random digits in place of its own, its rows, columns and
            bands of boxes in random order, and where boxes are square mirrored at the diagonal with probability 1/2.
        root: folder that holds `train.csv` and `test.csv` with the columns `question` and `answer`, of N² characters
            each and 0 or a point for a blank; as many puzzles as asked for are drawn from them, those that validate
            from `train.csv`. None: puzzles are generated.
        options: those of `Puzzles`.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `prepare_data` and `setup`, if files under `root` are missing.
        DataError: from `setup`, if a line of them is no puzzle with its solution.
        SplitError: from `setup`, if there are too few different puzzles, or none with so few clues.

    References:
        Wang et al., "Hierarchical reasoning model", 2025, arXiv:2506.21734 (Sudoku-Extreme).
    """

    dtype: ClassVar[torch.dtype] = torch.int64

    def __init__(
        self,
        box: tuple[int, int] = (2, 2),
        clues: tuple[int, int] = (4, 7),
        train_grids: int | None = None,
        train_size: int = 1000,
        val_size: int = 200,
        test_size: int = 300,
        augment: bool = True,
        root: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _two(2, box=box)
        side = box[0] * box[1]
        if side > 9:
            raise ValueError(f"`box` must have 9 cells or fewer, got {box[0]} x {box[1]}.")
        _two(1, clues=clues)
        ascending(clues=clues)
        if root is None and clues[1] >= side**2:
            raise ValueError(f"`clues` must leave one of the {side**2} cells blank, got {list(clues)}.")
        sizes(1, train_size=train_size, val_size=val_size, test_size=test_size)
        if train_grids is None:
            train_grids = TRAINING_GRIDS if side == 4 else train_size
        sizes(1, train_grids=train_grids)
        if side == 4 and train_grids > GRIDS - 2:
            raise ValueError(
                f"`train_grids` must leave one grid to validate and one to test of all {GRIDS}, got {train_grids}."
            )
        self.box = (box[0], box[1])
        self.clues = (clues[0], clues[1])
        self.train_grids = train_grids
        self.train_size = train_size
        self.val_size = val_size
        self.test_size = test_size
        self.augment = augment
        self.root = root
        self.rules = Rules(self.box)
        self.transform = Disguise(self.box) if augment else None

    @property
    def samples(self) -> Samples:
        """Description of the puzzles."""
        side = self.rules.side
        return Samples(PUZZLES, size=(side, side), words=side + 1, classes=side)

    @property
    def test_names(self) -> list[str]:
        """Rows and columns of the puzzles."""
        return [f"{self.rules.side}x{self.rules.side}"]

    def prepare_data(self) -> None:
        """Look for the files under `root`, so that a missing one stops the run at its start."""
        if self.root is not None:
            for split in ("train", "test"):
                self._file(self.root, split)

    def _training(self) -> tuple[Pairs, Pairs]:
        if self.root is None:
            grids = self._grids()
            return self._generated("train", grids), self._generated("val", grids)
        puzzles, (tested, _) = self._read(self.root, "train"), self._read(self.root, "test")
        what = f"puzzles in `{self._file(self.root, 'train')}` that do not test"
        counts = {"val_size": self.val_size, "train_size": self.train_size}
        val, train = different(shuffled(puzzles, self.seed), what, counts, tested)
        return train, val

    def _tests(self) -> Iterable[Pairs]:
        if self.root is None:
            return [self._generated("test", self._grids())]
        return [chosen(self._read(self.root, "test"), self.test_size, self.seed)]

    def _grids(self) -> dict[str, np.ndarray]:
        """Return the solutions of each split."""
        counts = {"test": self.test_size, "val": self.val_size, "train": self.train_grids}
        if self.rules.side == 4:
            spare = GRIDS - self.train_grids
            counts |= {"test": spare // 2, "val": spare - spare // 2}
        draws = np.random.RandomState(derive_seed(self.seed, self.rules.side))
        parts = different(((grids, grids) for grids in self.rules.grids(draws)), "grids", counts)
        return {split: grids for split, (grids, _) in zip(SPLITS, parts, strict=True)}

    def _generated(self, split: str, grids: dict[str, np.ndarray]) -> Pairs:
        draws = np.random.RandomState(derive_seed(self.seed, self.rules.side, 1 + SPLITS.index(split)))
        few, many = self.clues
        what = f"puzzles of {len(grids[split])} grids with {few} to {many} clues that were found"
        count = {f"{split}_size": getattr(self, f"{split}_size")}
        ((x, y),) = different(self.rules.puzzles(grids[split], self.clues, draws), what, count)
        return x, y - 1

    def _file(self, root: str, split: str) -> Path:
        return found(Path(root).expanduser() / f"{split}.csv", "Sudoku", "`train.csv` and `test.csv`")

    def _read(self, root: str, split: str) -> Pairs:
        side = self.rules.side
        others = (box for box in ([2, 2], [2, 3], [3, 3]) if box[0] * box[1] != side)
        advice = f"Set {' or '.join(f'`box={box}`' for box in others)} if puzzles have another size."
        table = read_table(self._file(root, split), side**2, advice=advice)
        return self._checked(table)

    def _checked(self, table: Table) -> Pairs:
        digits = {str(digit): digit for digit in range(1, self.rules.side + 1)}
        x, y = table.decoded({".": 0, "0": 0, **digits}, digits)
        table.refuse(self.rules.broken(y), "the answer must have each digit once in each row, column and box")
        table.refuse(((x != 0) & (x != y)).any(axis=1), "the question must agree with its answer")
        if self.rules.side <= CHECKED:
            several = np.array([not self.rules.unique(puzzle) for puzzle in x.tolist()])
            table.refuse(several, "the question must have one solution alone, got several")
        return x, y - 1


class Disguise:
    """Makes another puzzle with the same rules of a puzzle and its labels, at random.

    Args:
        box: rows and columns of a box.
    """

    def __init__(self, box: tuple[int, int]) -> None:
        self.box = box

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return digits (cells,) and labels (cells,) of such a puzzle."""
        rows, columns = self.box
        side = rows * columns
        cells = side * _lines(columns, rows)[:, None] + _lines(rows, columns)
        if rows == columns and torch.rand(()) < 0.5:
            cells = cells.t()
        moved = cells.flatten()
        digits = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(side)])
        return digits[x[moved]], digits[y[moved] + 1] - 1


def _lines(bands: int, lines: int) -> Tensor:
    """Return the lines of all bands in random order, the bands in random order too."""
    return (lines * torch.randperm(bands)[:, None] + torch.rand(bands, lines).argsort(dim=1)).flatten()


def _two(minimum: int, **values: Any) -> None:
    several_sizes(minimum, **values)
    for name, value in values.items():
        if len(value) != 2:
            raise ValueError(f"`{name}` must be two numbers, got {list(value)}.")
