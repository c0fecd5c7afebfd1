"""Mazes of characters."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deq_lightning.configured import sizes
from deq_lightning.data.errors import DataError, SplitError
from deq_lightning.data.puzzles.base import Pairs, Puzzles, different, turned
from deq_lightning.data.puzzles.files import found, read_table, shuffled
from deq_lightning.samples import PUZZLES, Samples

CHARACTERS = "# SGo"  # wall, open, start, goal, path
TOKENS = {character: token for token, character in enumerate(CHARACTERS, start=1)}  # 0 is padding, which these lack


class MazeHard(Puzzles):
    """Maze-Hard from its files: mazes of 30x30 characters, or of another square size, with a shortest path.

    x (cells,) holds the tokens of the question by rows, 1 to 5 for a wall '#', an open ' ', the start 'S', the goal 'G'
    and the path 'o'; y (cells,) those of the answer, in which the path is drawn. Token 0 would be padding. Validation
    takes `val_size` of the training mazes; a training maze that tests too is left out.

    Args:
        root: folder that holds `train.csv` and `test.csv` with the columns `question` and `answer`.
        val_size: training mazes set aside for validation, 1 or more.
        augment: whether to turn and mirror training mazes at random.
        options: those of `Puzzles`.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `prepare_data` and `setup`, if files are missing.
        DataError: from `setup`, if a line of them is no maze with its path.
        SplitError: from `setup`, if `val_size` leaves no maze to train on.

    References:
        Wang et al., "Hierarchical reasoning model", 2025, arXiv:2506.21734.
    """

    dtype: ClassVar[torch.dtype] = torch.int64

    def __init__(self, root: str = "data/maze_hard", val_size: int = 100, augment: bool = True, **options: Any) -> None:
        super().__init__(**options)
        sizes(1, val_size=val_size)
        self.root = root
        self.val_size = val_size
        self.augment = augment
        self.transform = turned_row if augment else None
        self._side: int | None = None

    @property
    def side(self) -> int:
        """Rows and columns of a maze: those of the first one that trains."""
        if self._side is None:
            path = self._file("train")
            characters = read_table(path, most=1).questions.shape[1]
            self._side = math.isqrt(characters)
            if self._side**2 != characters:
                raise DataError(
                    f"the mazes in `{path}` must be squares by rows, such as 900 characters, got {characters}."
                )
        return self._side

    @property
    def samples(self) -> Samples:
        """Description of the mazes, from the first that trains."""
        tokens = len(CHARACTERS) + 1
        return Samples(PUZZLES, size=(self.side, self.side), words=tokens, classes=tokens)

    @property
    def test_names(self) -> list[str]:
        """Rows and columns of the mazes."""
        return [f"{self.side}x{self.side}"]

    def prepare_data(self) -> None:
        """Look for both files, so that a missing one stops the run at its start."""
        for split in ("train", "test"):
            self._file(split)

    def _training(self) -> tuple[Pairs, Pairs]:
        mazes, (tested, _) = self._read("train"), self._read("test")
        left = len({maze.tobytes() for maze in mazes[0]} - {maze.tobytes() for maze in tested})
        if self.val_size >= left:
            raise SplitError(
                f"`val_size` must leave one of the {left} mazes in `{self._file('train')}` that do not test to train "
                f"on, got {self.val_size}. Set `val_size=N` with a smaller one."
            )
        counts = {"val_size": self.val_size, "train_size": left - self.val_size}
        val, train = different(shuffled(mazes, self.seed), "mazes", counts, tested)
        return train, val

    def _tests(self) -> Iterable[Pairs]:
        return [self._read("test")]

    def _file(self, split: str) -> Path:
        return found(Path(self.root).expanduser() / f"{split}.csv", "MazeHard", "`train.csv` and `test.csv`")

    def _read(self, split: str) -> Pairs:
        table = read_table(self._file(split), self.side**2)
        questions = {character: token for character, token in TOKENS.items() if character != "o"}
        x, y = table.decoded(questions, TOKENS)
        for character, end in (("S", "start"), ("G", "goal")):
            ends = (x == TOKENS[character]).sum(axis=1)
            table.refuse(ends != 1, f"the question must have one {end} {character!r}")
        path = y == TOKENS["o"]
        table.refuse((np.where(path, TOKENS[" "], y) != x).any(axis=1), "the answer must be the question with a path")
        return x, y


def turned_row(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two squares, which are given by rows, turned and mirrored together at random."""
    side = math.isqrt(x.numel())
    x, y = turned(x.view(side, side), y.view(side, side))
    return x.flatten(), y.flatten()
