"""Sudoku: its rules, its solutions, and puzzles with one solution."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from deq_lightning.data.errors import SplitError
from deq_lightning.data.puzzles.base import Pairs

TRIES = 300  # for a puzzle with a number of clues: few grids have one with very few
CHUNK = 4096  # answers that are checked at a time


class Rules:
    """Sudoku for one shape of boxes: each row, column and box has each digit once.

    Args:
        box: rows and columns of a box.
    """

    def __init__(self, box: tuple[int, int]) -> None:
        side = box[0] * box[1]
        self.side = side
        self.digits = (1 << side + 1) - 2  # bit d for digit d
        rows, columns = np.divmod(np.arange(side**2), side)
        boxes = rows // box[0] * box[0] + columns // box[1]
        units = np.stack([rows, side + columns, 2 * side + boxes], axis=1)
        self.units_of: list[list[int]] = units.tolist()
        self.units = np.stack([np.flatnonzero((units == unit).any(axis=1)) for unit in range(3 * side)])

    def broken(self, answers: np.ndarray) -> np.ndarray:
        """Return which of the full grids (count, cells) break a rule."""
        parts = [answers[start : start + CHUNK] for start in range(0, len(answers), CHUNK)]
        found = [np.bitwise_or.reduce(1 << part.astype(np.int16)[:, self.units], axis=2) for part in parts]
        return (np.concatenate(found) != self.digits).any(axis=1)

    def unique(self, puzzle: Sequence[int]) -> bool:
        """Return whether a puzzle has one solution alone."""
        return len(list(islice(self.solutions(puzzle), 2))) == 1

    def solutions(self, puzzle: Sequence[int], draws: np.random.RandomState | None = None) -> Iterator[list[int]]:
        """Yield the solutions of a puzzle.

        Args:
            puzzle: the digit of each cell by rows, 0 for a blank.
            draws: tries the digits in a random order. None: in ascending order.
        """
        free = [self.digits] * (3 * self.side)
        for cell, digit in enumerate(puzzle):
            for unit in self.units_of[cell] if digit else ():
                if not free[unit] >> digit & 1:
                    return
                free[unit] ^= 1 << digit
        blanks = [cell for cell, digit in enumerate(puzzle) if not digit]
        yield from self._search(list(puzzle), free, blanks, draws)

    def _search(
        self, grid: list[int], free: list[int], blanks: list[int], draws: np.random.RandomState | None
    ) -> Iterator[list[int]]:
        if not blanks:
            yield list(grid)
            return
        fewest, cell, digits = self.side + 1, -1, 0
        for blank in blanks:
            row, column, box = self.units_of[blank]
            left = free[row] & free[column] & free[box]
            if left.bit_count() < fewest:
                fewest, cell, digits = left.bit_count(), blank, left
                if fewest < 2:
                    break
        others = [blank for blank in blanks if blank != cell]
        choices = [digit for digit in range(1, self.side + 1) if digits >> digit & 1]
        for digit in choices if draws is None else draws.permutation(choices):
            for unit in self.units_of[cell]:
                free[unit] ^= 1 << int(digit)
            grid[cell] = int(digit)
            yield from self._search(grid, free, others, draws)
            for unit in self.units_of[cell]:
                free[unit] ^= 1 << int(digit)
        grid[cell] = 0

    def grids(self, draws: np.random.RandomState) -> Iterator[np.ndarray]:
        """Yield random full grids, (count, cells) at a time; all there are of 4x4 once."""
        empty = [0] * self.side**2
        if self.side == 4:
            yield draws.permutation(np.array(list(self.solutions(empty)), dtype=np.int8))
            return
        while True:
            yield np.array([next(self.solutions(empty, draws))], dtype=np.int8)

    def puzzles(self, grids: np.ndarray, clues: tuple[int, int], draws: np.random.RandomState) -> Iterator[Pairs]:
        """Yield random puzzles with one solution each, a row at a time, and their solutions.

        Args:
            grids: solutions to draw from.
            clues: the fewest and most clues; each number is as frequent.
            draws: where the random numbers come from.

        Raises:
            SplitError: if no puzzle with so few clues is found.
        """
        while True:
            wanted = draws.randint(clues[0], clues[1] + 1)
            fewest = self.side**2
            for _ in range(TRIES):
                grid = grids[draws.randint(len(grids))]
                puzzle = self._thinned(grid.tolist(), wanted, draws)
                fewest = min(fewest, sum(map(bool, puzzle)))
                if fewest == wanted:
                    yield np.array([puzzle], dtype=np.int8), grid[None]
                    break
            else:
                raise SplitError(
                    f"`clues` must be {fewest} or more, got {wanted}: of {TRIES} random puzzles none with fewer had "
                    f"one solution alone. Set `clues=[{fewest}, {max(fewest, clues[1])}]`."
                )

    def _thinned(self, grid: list[int], clues: int, draws: np.random.RandomState) -> list[int]:
        """Take digits out of a grid, in random order, as long as its solution stays the only one."""
        left = len(grid)
        for cell in draws.permutation(len(grid)).tolist():
            if left == clues:
                break
            digit, grid[cell] = grid[cell], 0
            if self.unique(grid):
                left -= 1
            else:
                grid[cell] = digit
        return grid
