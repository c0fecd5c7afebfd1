"""Sudoku: rules, solutions counted another way, splits by grid, and puzzles in disguise."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from deq_lightning import Sudoku
from deq_lightning.data.errors import SplitError
from deq_lightning.data.puzzles.grids import Rules
from deq_lightning.data.puzzles.sudoku import Disguise

FEW = {"train_size": 40, "val_size": 10, "test_size": 15}
KINDS = {"4x4": ((2, 2), (4, 7)), "6x6": ((2, 3), (14, 18)), "tall": ((3, 2), (16, 18))}


def ready(box: tuple[int, int], clues: tuple[int, int], **arguments: object) -> Sudoku:
    data = Sudoku(box, clues, **{**FEW, **arguments})
    data.setup()
    return data


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def data(request: pytest.FixtureRequest) -> Sudoku:
    return ready(*request.param)


def splits(data: Sudoku) -> list[tuple[Tensor, Tensor]]:
    """Return puzzles and solutions, from 1, of training, validation and test."""
    sets = (getattr(data.train_set, "dataset", data.train_set), data.val_set, *data.test_sets.values())
    return [(part.x.long(), part.y.long() + 1) for part in sets]


def legal(grid: Tensor, box: tuple[int, int]) -> bool:
    """Return whether each row, column and box has each digit once."""
    side = box[0] * box[1]
    lines = [*grid, *grid.T, *(part.flatten() for band in grid.split(box[0]) for part in band.split(box[1], dim=1))]
    return len(lines) == 3 * side and all(line.sort().values.tolist() == list(range(1, side + 1)) for line in lines)


def count_solutions(puzzle: np.ndarray, box: tuple[int, int]) -> int:
    """Count the solutions by trying all fillings, a row at a time; nothing of the package's search."""
    side = box[0] * box[1]
    rows = [[p for p in permutations(range(1, side + 1)) if all(c in (0, d) for c, d in zip(line, p, strict=True))]
            for line in puzzle.reshape(side, side).tolist()]  # fmt: skip
    boxes = [column // box[1] for column in range(side)]
    states = {((0,) * side, (0,) * box[0]): 1}  # digits used in each column and in each box of the band, as bits
    for number, choices in enumerate(rows):
        new: dict = {}
        for (columns, used), count in states.items():
            used = (0,) * box[0] if number % box[0] == 0 else used
            for row in choices:
                if any(columns[c] >> d & 1 or used[boxes[c]] >> d & 1 for c, d in enumerate(row)):
                    continue
                later = list(used)
                for c, d in enumerate(row):
                    later[boxes[c]] |= 1 << d
                key = tuple(columns[c] | 1 << d for c, d in enumerate(row)), tuple(later)
                new[key] = new.get(key, 0) + count
        states = new
    return sum(states.values())


def test_the_counter_of_this_test_knows_the_known_numbers() -> None:
    assert count_solutions(np.zeros(16, dtype=int), (2, 2)) == 288
    # 28,200,960 grids of 6x6. The first row is any of 720; the first half of the second any of 6, which columns and
    # digits in another order make alike; of its other half the 6 orders count by their cycles.
    kinds = {(1, 2, 3): 1, (2, 1, 3): 3, (2, 3, 1): 2}
    bands = {kind: np.array([1, 2, 3, 4, 5, 6, 4, 5, 6, *kind, *[0] * 24]) for kind in kinds}
    assert 720 * 6 * sum(kinds[kind] * count_solutions(band, (2, 3)) for kind, band in bands.items()) == 28_200_960


def test_all_grids_of_4x4() -> None:
    grids = np.concatenate(list(Rules((2, 2)).grids(np.random.RandomState(0))))
    assert grids.shape == (288, 16) and len(np.unique(grids, axis=0)) == 288
    assert not Rules((2, 2)).broken(grids).any()


def test_labels_are_the_solution_and_clues_agree_with_it(data: Sudoku) -> None:
    side = data.box[0] * data.box[1]
    for puzzles, solutions in splits(data):
        assert all(legal(grid.view(side, side), data.box) for grid in solutions)
        given = puzzles > 0
        assert torch.equal(puzzles[given], solutions[given])
    x, y = data.val_set[0]
    assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (side**2,)
    assert 0 <= y.min() and y.max() == side - 1 and x.max() <= side


def test_each_puzzle_has_one_solution(data: Sudoku) -> None:
    for puzzles, _ in splits(data):
        for puzzle in puzzles[:8].numpy():
            assert count_solutions(puzzle, data.box) == 1 and data.rules.unique(puzzle.tolist())


def test_several_solutions_and_none() -> None:
    rules = Rules((2, 2))
    for clues in ([0] * 16, [1, 2, 3, 4] + [0] * 12, [1, 0, 0, 0, 0, 2] + [0] * 10, [1, 1] + [0] * 14):
        found = list(rules.solutions(clues))
        assert len(found) == len(set(map(tuple, found))) == count_solutions(np.array(clues), (2, 2))
        assert rules.unique(clues) is False
    assert list(rules.solutions([1, 1] + [0] * 14)) == []


def test_no_grid_is_in_two_splits(data: Sudoku) -> None:
    grids = [{tuple(grid) for grid in solutions.tolist()} for _, solutions in splits(data)]
    assert len(set.union(*grids)) == sum(map(len, grids))
    if data.box == (2, 2):
        whole = ready((2, 2), (4, 7), train_size=600, val_size=300, test_size=300)
        train, *others = (len({tuple(grid) for grid in solutions.tolist()}) for _, solutions in splits(whole))
        assert 180 <= train <= 200 and others == [44, 44]  # drawn at random, 3 times each on average


def test_numbers_of_clues_are_uniform() -> None:
    (puzzles, _), *_ = splits(ready((2, 2), (5, 8), train_size=1000))
    counts = (puzzles > 0).sum(1).bincount()
    assert counts[:5].tolist() == [0] * 5 and len(counts) == 9
    assert ((counts[5:] - 250).abs() < 70).all()  # 5 standard deviations


@pytest.mark.parametrize("box", [(2, 2), (2, 3), (3, 2), (3, 3)])
def test_a_disguise_keeps_rules_and_clues(box: tuple[int, int]) -> None:
    side = box[0] * box[1]
    rules = Rules(box)
    solution = torch.tensor(next(rules.solutions([0] * side**2, np.random.RandomState(0))))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        puzzle = torch.where(torch.rand(side**2) < 0.4, solution, 0)
        disguise, seen = Disguise(box), set()
        for _ in range(60):
            x, y = disguise(puzzle, solution - 1)
            seen.add(tuple(y.tolist()))
            assert legal((y + 1).view(side, side), box)
            assert (x > 0).sum() == (puzzle > 0).sum() and torch.equal(x[x > 0], y[x > 0] + 1)
    assert len(seen) > 50 * (side > 4) + 5


def test_a_disguise_reaches_all_that_it_may() -> None:
    """Of a 4x4 grid there are 8 orders of rows, 8 of columns, 24 of digits, and a mirror."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert len({tuple(places().tolist()) for _ in range(1000)}) == 8 * 8 * 2


def places() -> Tensor:
    """Return where a disguise takes each cell from, a bit at a time because there are only four digits."""
    state, taken = torch.get_rng_state(), torch.zeros(16, dtype=torch.long)
    for bit in range(4):
        torch.set_rng_state(state)
        x, _ = Disguise((2, 2))(torch.arange(16) >> bit & 1, torch.zeros(16, dtype=torch.long))
        taken += (x > 0).long() << bit
    return taken


def test_training_puzzles_are_seen_in_disguise_and_test_puzzles_are_not() -> None:
    data = ready((2, 2), (4, 7))
    held = data.train_set.dataset
    assert any(not torch.equal(data.train_set[row][0], held.x[row].long()) for row in range(10))
    again = [data.train_set[3] for _ in range(2)]
    assert torch.equal(again[0][0], again[1][0])  # fixed by seed, epoch and index
    x, y = ready((2, 2), (4, 7), augment=False).train_set[3]
    assert torch.equal(x, held.x[3].long()) and torch.equal(y, held.y[3].long())
    plain, val = data.test_sets["4x4"], data.val_set
    assert torch.equal(plain[0][0], plain.x[0].long()) and torch.equal(val[0][1], val.y[0].long())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"box": (3, 4)}, "`box` must have 9 cells or fewer, got 3 x 4."),
        ({"box": (2,)}, "`box` must be two numbers, got [2]."),
        ({"box": (1, 4)}, "`box` must be 2 or more, got [1, 4]."),
        ({"clues": (7, 4)}, "`clues` must be ascending, got [7, 4]. Swap its entries."),
        ({"clues": (4, 16)}, "`clues` must leave one of the 16 cells blank, got [4, 16]."),
        ({"train_grids": 287}, "`train_grids` must leave one grid to validate and one to test of all 288, got 287."),
    ],
)
def test_arguments_that_are_none(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        Sudoku(**arguments)
    assert str(error.value) == message


def test_fewer_clues_than_any_puzzle_has() -> None:
    with pytest.raises(SplitError) as error:
        Sudoku(clues=(3, 3)).setup()
    assert str(error.value) == (
        "`clues` must be 4 or more, got 3: of 300 random puzzles none with fewer had one solution alone. Set "
        "`clues=[4, 4]`."
    )


def test_more_puzzles_than_a_grid_has() -> None:
    """A grid of 4x4 has 16 puzzles with 15 clues."""
    with pytest.raises(SplitError) as error:
        Sudoku(clues=(15, 15), train_grids=2, train_size=33).setup("fit")
    assert str(error.value) == (
        "`train_size` must be at most 32, the number of different puzzles of 2 grids with 15 to 15 clues that were "
        "found, got 33."
    )
