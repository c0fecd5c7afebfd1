"""Mazes are trees, their paths the only ones, and the published files are read as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components
from torch import Tensor

from deq_lightning import Mazes
from deq_lightning.data.errors import DataError, DatasetNotFoundError, SplitError
from deq_lightning.data.puzzles.carving import carve, doubled, mazes, undoubled
from deq_lightning.samples import UNLABELLED

FEW = {"train_size": 30, "val_size": 5, "test_size": 5}


def ready(**arguments: object) -> Mazes:
    data = Mazes(**{"size": 9, "test_sizes": [9, 13], **FEW, **arguments})
    data.setup()
    return data


def graph(opened: np.ndarray) -> coo_matrix:
    """Return which open squares touch, by their numbers in the picture."""
    number = np.arange(opened.size).reshape(opened.shape)
    across, down = opened[:, 1:] & opened[:, :-1], opened[1:] & opened[:-1]
    pairs = np.concatenate(
        [np.stack([number[:, 1:][across], number[:, :-1][across]]), np.stack([number[1:][down], number[:-1][down]])], 1
    )
    return coo_matrix((np.ones(pairs.shape[1]), tuple(pairs)), shape=(opened.size, opened.size))


def square_of(picture: np.ndarray, colour: list[int]) -> int:
    (found,) = np.flatnonzero((picture == np.array(colour)[:, None, None]).all(axis=0))
    return int(found)


def check(picture: np.ndarray, labels: np.ndarray, cells: int) -> None:
    """Check that the open squares are a tree of all cells, and that the labels are the one path."""
    opened = picture.max(axis=0) > 0
    assert opened[1::2, 1::2].all() and not opened[0::2, 0::2].any()
    assert opened.sum() == 2 * cells**2 - 1  # cells, and one passage less
    edges = graph(opened)
    assert edges.nnz == opened.sum() - 1  # with connectedness: a tree
    assert connected_components(edges, directed=False)[0] == 1 + (~opened).sum()
    start, goal = square_of(picture, [0, 1, 0]), square_of(picture, [1, 0, 0])
    _, before = breadth_first_order(edges, start, directed=False)
    path = [goal]
    while path[-1] != start:
        path.append(before[path[-1]])
    expected = np.where(opened, 0, UNLABELLED).ravel()
    expected[path] = 1
    assert (labels.ravel() == expected).all()


@pytest.mark.parametrize("cells", [3, 5, 8])
def test_a_maze_is_a_tree_with_its_path(cells: int) -> None:
    for picture, labels in zip(*mazes(25, cells, np.random.RandomState(cells)), strict=True):
        assert picture.shape == (3, 2 * cells + 1, 2 * cells + 1)
        check(picture, labels, cells)


def test_the_items_are_such_mazes_of_the_published_sizes() -> None:
    data = ready(augment=False)
    for part, cells in ((data.train_set, 5), (data.val_set, 5), (data.test_sets["9"], 5), (data.test_sets["13"], 7)):
        for x, y in part:
            assert x.dtype == torch.float32 and y.dtype == torch.int64 and x.shape == (3, *y.shape)
            check(x.numpy(), y.numpy(), cells)


def test_turned_mazes_keep_their_paths_and_differ_by_epoch() -> None:
    data = ready()
    seen = []
    for epoch in (0, 1):
        data.train_set.epoch.fill_(epoch)
        items = [data.train_set[index] for index in range(len(data.train_set))]
        for x, y in items:
            check(x.numpy(), y.numpy(), 5)
        seen.append(torch.stack([x for x, _ in items]))
    changed = (seen[0] != seen[1]).flatten(1).any(1).float().mean()
    assert 0.5 < changed < 1  # 7 of 8 on average


def test_a_search_goes_deep_and_is_fair() -> None:
    """In a maze of 2x2 cells the search turns one way round or the other, and ends beside the start."""
    starts = np.full(4000, 5)  # the first cell of a 2x2 maze with a rim
    entered = carve(starts, 2, np.random.RandomState(0))
    assert (entered[:, [5, 6, 9, 10]] == [[5, 5, 10, 6]]).all(1).sum() + (
        entered[:, [5, 6, 9, 10]] == [[5, 10, 5, 9]]
    ).all(1).sum() == 4000
    assert abs((entered[:, 6] == 5).mean() - 0.5) < 0.04  # 5 standard deviations


def test_start_and_goal_are_uniform_and_differ() -> None:
    pictures, _ = mazes(6000, 3, np.random.RandomState(0))
    starts = [square_of(picture, [0, 1, 0]) for picture in pictures[:3000]]
    goals = [square_of(picture, [1, 0, 0]) for picture in pictures[3000:]]
    for ends in (starts, goals):
        counts = np.unique(ends, return_counts=True)[1]
        assert len(counts) == 9 and (abs(counts / 3000 - 1 / 9) < 0.03).all()


def small_mazes() -> int:
    """Count the mazes of 3x3 cells: the trees of depth-first searches from each start, and 8 goals each."""

    def neighbours(cell: int) -> list[int]:
        row, column = divmod(cell, 3)
        near = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        return [3 * r + c for r, c in near if 0 <= r < 3 and 0 <= c < 3]

    def trees(visited: frozenset, stack: list[int], edges: frozenset) -> set[frozenset]:
        if len(visited) == 9:
            return {edges}
        free = [cell for cell in neighbours(stack[-1]) if cell not in visited]
        if not free:
            return trees(visited, stack[:-1], edges)
        ways = [trees(visited | {cell}, [*stack, cell], edges | {frozenset((stack[-1], cell))}) for cell in free]
        return set().union(*ways)

    return 8 * sum(len(trees(frozenset([start]), [start], frozenset())) for start in range(9))


def test_all_mazes_of_the_smallest_size_are_found_and_no_more() -> None:
    most = small_mazes()
    with pytest.raises(SplitError) as error:
        Mazes(5, [5]).setup("fit")
    assert str(error.value) == (
        f"`test_size` + `val_size` + `train_size` must be at most {most}, the number of different mazes of size 5, got "
        "200 + 300 + 15000."
    )
    data = Mazes(5, [5], train_size=most - 200, val_size=100, test_size=100)
    data.setup("fit")
    assert data.split_sizes() == {"train": most - 200, "val": 100}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 3}, "`size` must be 5 or more, got 3. That is 3x3 cells."),
        ({"size": 8}, "`size` must be odd, 2 cells − 1, got 8."),
        ({"test_sizes": [9, 12]}, "`test_sizes` must be odd, 2 cells − 1, got 12."),
        ({"test_sizes": [9, 9]}, "`test_sizes` must be different numbers, got [9, 9]."),
    ],
)
def test_sizes_that_are_none(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        Mazes(**arguments)
    assert str(error.value) == message


# --- the published pictures and files ---


def test_doubled_pictures_are_the_published_ones() -> None:
    single, double = (ready(doubled=wanted, augment=False) for wanted in (False, True))
    (x, y), (wide, paths) = single.train_set[0], double.train_set[0]
    assert wide.shape == (3, 24, 24) == double.samples.shape
    for row in range(24):
        for column in range(24):
            if 0 in (row, column) or 23 in (row, column):
                assert not wide[:, row, column].any() and paths[row, column] == UNLABELLED
            else:
                at = (row - 1) // 2, (column - 1) // 2
                assert torch.equal(wide[:, row, column], x[:, at[0], at[1]]) and paths[row, column] == y[at]


def published(root: Path, count: int = 40, **sizes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write files as they are published: doubled pictures of floats, paths of zeros and ones."""
    written = {}
    for seed, (name, size) in enumerate(sizes.items()):
        x, y = mazes(count, (size + 1) // 2, np.random.RandomState(seed))
        folder = root / f"maze_data_{name}_{size}"
        folder.mkdir(parents=True)
        np.save(folder / "inputs.npy", doubled(x, 0).astype(np.float32))
        np.save(folder / "solutions.npy", doubled((y == 1).astype(np.float32), 0))
        written[name] = x, y
    return written


def rows(x: Tensor | np.ndarray) -> set[bytes]:
    return {np.asarray(one, dtype=np.int8).tobytes() for one in x}


@pytest.mark.parametrize("wide", [False, True])
def test_published_files_are_read(tmp_path: Path, wide: bool) -> None:
    written = published(tmp_path, train=9, test=13)
    data = Mazes(9, [13], root=str(tmp_path), train_size=30, val_size=10, test_size=5, doubled=wide, augment=False)
    data.prepare_data()
    data.setup()
    assert data.split_sizes() == {"train": 30, "val": 10, "test": 5}
    for name, parts in (("train", [data.train_set, data.val_set]), ("test", [data.test_sets["13"]])):
        known = {one.tobytes(): labels for one, labels in zip(*written[name], strict=True)}
        for x, y in (item for part in parts for item in part):
            x, y = (undoubled(part.numpy()) if wide else part.numpy() for part in (x, y))
            assert (known.pop(x.astype(np.int8).tobytes()) == y).all()  # each once


def test_a_training_maze_that_tests_or_comes_twice_is_left_out(tmp_path: Path) -> None:
    published(tmp_path, train=9, test=9)
    train, test = (tmp_path / f"maze_data_{split}_9" for split in ("train", "test"))
    for file in ("inputs.npy", "solutions.npy"):
        own, theirs = np.load(train / file), np.load(test / file)
        np.save(train / file, np.concatenate([own[:20], own[:5], theirs[:15]]))
    data = Mazes(9, [9], root=str(tmp_path), train_size=16, val_size=4, test_size=40, augment=False)
    data.setup()
    train_rows, val_rows, test_rows = (rows(part.x) for part in (data.train_set, data.val_set, data.test_sets["9"]))
    assert (len(train_rows), len(val_rows), len(test_rows)) == (16, 4, 40)
    assert not (train_rows & val_rows or train_rows & test_rows or val_rows & test_rows)
    data = Mazes(9, [9], root=str(tmp_path), train_size=17, val_size=4, test_size=41)
    with pytest.raises(SplitError, match=r"at most 20, the number of different mazes of size 9 in `.*train_9` that do"):
        data.setup("fit")
    with pytest.raises(SplitError, match=r"^`test_size` must be at most 40, the number of test puzzles, got 41.$"):
        data.setup("test")


def spoil(root: Path, change: str) -> None:
    inputs, solutions = (root / "maze_data_train_9" / name for name in ("inputs.npy", "solutions.npy"))
    x, y = np.load(inputs), np.load(solutions)
    if change == "shape":
        x = x[:, :, 1:]
    elif change == "values":
        x[1, 0, 0, 0] = np.nan
    elif change == "count":
        y = y[1:]
    elif change == "squares":
        x[2, :, 0, 0] = 1
    elif change == "start":
        x[3] = np.where((x[3] == np.array([0, 1, 0])[:, None, None]).all(0), 1, x[3])
    elif change == "wall":
        y[4] = 1
    elif change == "ends":
        y[5] = 0
    np.save(inputs, x)
    np.save(solutions, y)
    if change == "damaged":
        inputs.write_bytes(inputs.read_bytes()[:200])
    elif change == "pickle":
        np.save(inputs, np.array([{}, 1], dtype=object))
    elif change == "missing":
        solutions.unlink()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ("shape", DataError, r"inputs.npy` must hold an array \(count, 3, 24, 24\), got \(40, 3, 23, 24\).$"),
        ("values", DataError, r"inputs.npy` must hold zeros and ones alone, got others.$"),
        ("count", DataError, r"inputs.npy` and `.*solutions.npy` must be of the same mazes, got 40 and 39.$"),
        ("squares", DataError, r"^maze 3 in `.*train_9` must have squares of 2x2 pixels and a black rim. Unpack"),
        ("start", DataError, r"^maze 4 in `.*` must have one green square, the start. Unpack"),
        ("wall", DataError, r"^maze 5 in `.*` must have its path on open squares. Unpack"),
        ("ends", DataError, r"^maze 6 in `.*` must have start and goal on its path. Unpack"),
        ("damaged", DatasetNotFoundError, r"inputs.npy` cannot be read, it is damaged or no plain array \("),
        ("pickle", DatasetNotFoundError, r"inputs.npy` cannot be read, it is damaged or no plain array \("),
        ("missing", DatasetNotFoundError, r"`Mazes` needs .*; there is no `.*solutions.npy`. Set `root=PATH` to name"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, change: str, kind: type[Exception], message: str) -> None:
    published(tmp_path, train=9, test=13)
    spoil(tmp_path, change)
    data = Mazes(9, [13], root=str(tmp_path), **FEW)
    with pytest.raises(kind, match=message) as error:
        data.prepare_data()
        data.setup("fit")
    assert "\n" not in str(error.value)
