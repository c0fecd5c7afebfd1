"""Perfect mazes, many at once."""

import numpy as np

from deq_lightning.data.puzzles.base import Pairs
from deq_lightning.samples import UNLABELLED

DRAWS = 12  # a multiple of 1, 2, 3 and 4: a draw below it picks among so many neighbours without a bias


def _choices() -> np.ndarray:
    """Return the direction that each draw picks for each set of free directions, (16, DRAWS); -1 for none."""
    table = np.full((16, DRAWS), -1)
    for free in range(1, 16):
        directions = [direction for direction in range(4) if free >> direction & 1]
        table[free] = [directions[draw % len(directions)] for draw in range(DRAWS)]
    return table


CHOICES = _choices()


def carve(starts: np.ndarray, cells: int, draws: np.random.RandomState) -> np.ndarray:
    """Return a tree of all cells for each start, by a random depth-first search from there.

    A search goes on to a random neighbour that was not visited, or back where there is none. All searches take a step
    at a time together, and all are through after 2 (cells² − 1) steps.

    Args:
        starts: (count,) cells to begin at. Cells are numbered by rows, with a rim of one around the maze.
        cells: cells of a row and of a column.
        draws: where the random numbers come from.

    Returns:
        (count, (cells + 2)²) the cell that each was entered from; the start is its own.
    """
    count, width, steps = len(starts), cells + 2, 2 * (cells**2 - 1)
    offsets = np.array([1, width, -1, -width])
    rim = np.ones((width, width), dtype=bool)
    rim[1:-1, 1:-1] = False
    visited = np.tile(rim.ravel(), (count, 1))
    entered = np.tile(np.arange(width**2), (count, 1))
    rows, here = np.arange(count), starts
    visited[rows, here] = True
    for draw in draws.randint(DRAWS, size=(steps, count), dtype=np.int8):
        free = ~visited[rows[:, None], here[:, None] + offsets] @ np.array([1, 2, 4, 8])
        on = free > 0
        there = np.where(on, here + offsets[CHOICES[free, draw]], entered[rows, here])
        entered[rows, there] = np.where(on, here, entered[rows, there])
        visited[rows, there] = True
        here = there
    return entered


def mazes(count: int, cells: int, draws: np.random.RandomState) -> Pairs:
    """Return pictures (count, 3, n, n) of random perfect mazes, and labels (count, n, n), with n = 2 cells + 1.

    Open squares are white, walls black, the start is green and the goal red. A label is 1 on the path from start to
    goal, both included, 0 on other open squares and UNLABELLED on walls.
    """
    side, rows = 2 * cells + 1, np.arange(count)
    first = draws.randint(cells**2, size=count)
    last = (first + 1 + draws.randint(cells**2 - 1, size=count)) % cells**2
    starts, goals = ((one // cells + 1) * (cells + 2) + one % cells + 1 for one in (first, last))
    entered = carve(starts, cells, draws)

    def square(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the square between two cells that touch, or that of a cell and itself."""
        (row, column), (next_row, next_column) = np.divmod(one, cells + 2), np.divmod(other, cells + 2)
        return (row + next_row - 1) * side + column + next_column - 1

    inner = np.arange((cells + 2) ** 2).reshape(cells + 2, cells + 2)[1:-1, 1:-1].ravel()
    labels = np.full((count, side**2), UNLABELLED, dtype=np.int8)
    labels[:, square(inner, inner)] = 0
    labels[rows[:, None], square(inner, entered[:, inner])] = 0
    pictures = np.repeat((labels == 0).astype(np.int8)[:, None], 3, axis=1)
    for dark, ends in (([0, 2], starts), ([1, 2], goals)):
        pictures[rows[:, None], dark, square(ends, ends)[:, None]] = 0
    here = goals
    while True:
        before = entered[rows, here]
        labels[rows, square(here, here)] = labels[rows, square(here, before)] = 1
        if (here == starts).all():
            return pictures.reshape(count, 3, side, side), labels.reshape(count, side, side)
        here = before


def doubled(squares: np.ndarray, rim: int) -> np.ndarray:
    """Return squares (..., n, n) twice as high and wide, with `rim` on the line around them."""
    wide = squares.repeat(2, axis=-1).repeat(2, axis=-2)
    return np.pad(wide, [(0, 0)] * (squares.ndim - 2) + [(1, 1)] * 2, constant_values=rim)


def undoubled(squares: np.ndarray) -> np.ndarray:
    """Return what `doubled` doubled."""
    return squares[..., 1:-1:2, 1:-1:2]
