"""Sudoku and mazes in tables of text: what is read, and what a bad line is told."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deq_lightning import MazeHard, Sudoku
from deq_lightning.data.errors import DataError, DatasetNotFoundError, SplitError
from deq_lightning.data.puzzles.carving import mazes
from deq_lightning.data.puzzles.grids import Rules
from deq_lightning.samples import PUZZLES

NINE = {"box": (3, 3), "train_size": 6, "val_size": 2, "test_size": 3}


def sudokus(box: tuple[int, int], count: int, seed: int, clues: int = 0) -> list[tuple[str, str]]:
    """Return questions and answers; with so many clues that the solution is the only one."""
    rules, draws = Rules(box), np.random.RandomState(seed)
    grids = np.concatenate([next(rules.grids(draws)) for _ in range(count)])[:count]
    pairs = []
    for grid in grids:
        ((puzzle,), _) = next(rules.puzzles(grid[None], (clues, clues), draws))
        pairs.append(("".join(map(str, puzzle)).replace("0", "."), "".join(map(str, grid))))
    return pairs


def write(path: Path, pairs: list[tuple[str, str]], form: str = "extreme") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "extreme":
        rows = ["source,question,answer,rating", *(f"puzzles0,{one},{other},12" for one, other in pairs)]
    elif form == "turned":
        rows = ["answer,rating,question", *(f"{other},0,{one.replace('.', '0')}" for one, other in pairs)]
    else:
        rows = [f"{one},{other}" for one, other in pairs]
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def nine() -> list[tuple[str, str]]:
    return sudokus((3, 3), 12, seed=0, clues=40)


@pytest.mark.parametrize("form", ["extreme", "turned", "no header"])
def test_sudoku_extreme_is_read(tmp_path: Path, nine: list[tuple[str, str]], form: str) -> None:
    write(tmp_path / "train.csv", nine[:8], form)
    write(tmp_path / "test.csv", nine[8:], form)
    data = Sudoku(root=str(tmp_path), augment=False, **NINE)
    data.prepare_data()
    data.setup()
    assert data.split_sizes() == {"train": 6, "val": 2, "test": 3} and data.test_names == ["9x9"]
    assert data.samples.arguments()["vocab_size"] == 10 and data.samples.classes == 9
    for pairs, parts in ((nine[:8], [data.train_set, data.val_set]), (nine[8:], [data.test_sets["9x9"]])):
        left = list(pairs)
        for x, y in (item for part in parts for item in part):
            left.remove(("".join(map(str, x.tolist())).replace("0", "."), "".join(str(d + 1) for d in y.tolist())))
        assert len(left) == len(pairs) - sum(map(len, parts))


def test_no_puzzle_of_a_file_is_in_two_splits(tmp_path: Path, nine: list[tuple[str, str]]) -> None:
    write(tmp_path / "train.csv", [*nine[:8], *nine[:3], *nine[8:10]])  # three come twice, two test
    write(tmp_path / "test.csv", nine[8:])
    data = Sudoku(root=str(tmp_path), augment=False, **NINE)
    data.setup()
    keys = [{row.numpy().tobytes() for row in part.x} for part in (data.train_set, data.val_set)]
    tested = {row.numpy().tobytes() for row in data.test_sets["9x9"].x}
    assert [len(one) for one in keys] == [6, 2] and not (keys[0] & keys[1] or tested & (keys[0] | keys[1]))
    with pytest.raises(SplitError) as error:
        Sudoku(root=str(tmp_path), **{**NINE, "train_size": 7}).setup("fit")
    assert str(error.value) == (
        f"`val_size` + `train_size` must be at most 8, the number of different puzzles in `{tmp_path}/train.csv` that "
        "do not test, got 2 + 7."
    )


def bad(pairs: list[tuple[str, str]], change: str) -> str:
    """Return a file whose third row, on line 4, is wrong."""
    question, answer = pairs[2]
    given = next(place for place, digit in enumerate(question) if digit != ".")
    other = "1" if question[given] != "1" else "2"
    changed = {
        "length": (question[:-1], answer),
        "answer's length": (question, answer + "1"),
        "character": (question.replace(".", "x", 1), answer),
        "not ASCII": (question.replace(".", "é", 1), answer),
        "blank answer": (question, answer[:-1] + "0"),
        "disagreement": (question[:given] + other + question[given + 1 :], answer),
        "rule": (question.replace(answer[0], "."), answer.replace(answer[0], answer[1])),
    }
    rows = [f"s,{one},{two},1" for one, two in [*pairs[:2], changed.get(change, (question, answer)), *pairs[3:]]]
    if change == "columns":
        rows[2] = f"s,{question}"
    elif change == "too long":
        rows[2] = "s," + "1" * 200_000
    return "\n".join(["source,question,answer,rating", *rows])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("length", "the question must have 81 characters, got 80"),
        ("answer's length", "the answer must have 81 characters, got 82"),
        ("character", "the question must be of the characters '.0123456789'"),
        ("not ASCII", "the question must be of the characters '.0123456789'"),
        ("blank answer", "the answer must be of the characters '123456789'"),
        ("disagreement", "the question must agree with its answer"),
        ("rule", "the answer must have each digit once in each row, column and box"),
        ("columns", "the row must have a question and an answer"),
        ("too long", "the row must be comma-separated text (field larger than field limit (131072))"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, nine: list[tuple[str, str]], change: str, message: str) -> None:
    write(tmp_path / "test.csv", nine[8:])
    (tmp_path / "train.csv").write_text(bad(nine[:8], change))
    with pytest.raises(DataError) as error:
        Sudoku(root=str(tmp_path), **NINE).setup("fit")
    assert str(error.value) == f"line 4 of `{tmp_path}/train.csv`: {message}. Repair that row or leave it out."


def test_blank_lines_count_as_lines_alone(tmp_path: Path, nine: list[tuple[str, str]]) -> None:
    write(tmp_path / "test.csv", nine[8:])
    write(tmp_path / "train.csv", nine[:8])
    good = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(good.replace("rating\n", "rating\n\n\n"))
    data = Sudoku(root=str(tmp_path), **NINE)
    data.setup("fit")
    assert data.split_sizes() == {"train": 6, "val": 2}
    (tmp_path / "train.csv").write_text(good.replace("rating\n", "rating\n\n\n").replace(nine[0][0], "x" * 81))
    with pytest.raises(DataError, match=r"^line 4 of "):
        Sudoku(root=str(tmp_path), **NINE).setup("fit")


def test_puzzles_of_another_size_say_which_box(tmp_path: Path, nine: list[tuple[str, str]]) -> None:
    write(tmp_path / "train.csv", nine[:8])
    write(tmp_path / "test.csv", nine[8:])
    with pytest.raises(DataError) as error:
        Sudoku(root=str(tmp_path)).setup("fit")
    assert str(error.value) == (
        f"line 2 of `{tmp_path}/train.csv`: the question must have 16 characters, got 81. Set `box=[2, 3]` or "
        "`box=[3, 3]` if puzzles have another size."
    )


def test_small_puzzles_with_several_solutions_are_refused(tmp_path: Path) -> None:
    pairs = sudokus((2, 2), 10, seed=0, clues=6)
    write(tmp_path / "test.csv", pairs[6:])
    write(tmp_path / "train.csv", [*pairs[:4], ("." * 15 + pairs[4][1][-1], pairs[4][1]), pairs[5]])
    sizes = {"train_size": 3, "val_size": 1, "test_size": 4}
    data = Sudoku(root=str(tmp_path), **sizes)
    with pytest.raises(DataError) as error:
        data.setup("fit")
    assert str(error.value) == (
        f"line 6 of `{tmp_path}/train.csv`: the question must have one solution alone, got several. Repair that row or "
        "leave it out."
    )
    data.setup("test")
    assert data.split_sizes() == {"test": 4}


# --- Maze-Hard ---


def texts(count: int, cells: int, seed: int) -> list[tuple[str, str]]:
    """Return mazes in characters, whose sides are 2 cells + 1."""
    pairs = []
    for picture, labels in zip(*mazes(count, cells, np.random.RandomState(seed)), strict=True):
        signs = np.where(picture.max(axis=0) > 0, " ", "#")
        signs[(picture[1] > picture[0])] = "S"
        signs[(picture[0] > picture[1])] = "G"
        path = np.where((labels == 1) & (signs == " "), "o", signs)
        pairs.append(("".join(signs.ravel()), "".join(path.ravel())))
    return pairs


@pytest.fixture
def hard(tmp_path: Path) -> Path:
    write(tmp_path / "train.csv", [*texts(10, 4, 0), *texts(4, 4, 1)[:2]])
    write(tmp_path / "test.csv", texts(4, 4, 1))  # two of them are training mazes too
    return tmp_path


def test_mazes_in_characters_are_read(hard: Path) -> None:
    data = MazeHard(str(hard), val_size=3, augment=False)
    assert data.samples.arguments() == {
        **{"image_size": 9, "dimensions": 2, "positions": 81},
        **{"num_classes": 6, "vocab_size": 6},
    }
    assert data.samples.kind == PUZZLES and data.test_names == ["9x9"]
    data.prepare_data()
    data.setup()
    assert data.split_sizes() == {"train": 7, "val": 3, "test": 4}  # two of the 12 test
    known = dict(texts(10, 4, 0))
    for x, y in (item for part in (data.train_set, data.val_set) for item in part):
        assert x.dtype == y.dtype == torch.int64
        question, answer = ("".join("?# SGo"[token] for token in tokens) for tokens in (x.tolist(), y.tolist()))
        assert known.pop(question) == answer
    assert not known


def test_turned_mazes_of_characters(hard: Path) -> None:
    data = MazeHard(str(hard), val_size=3)
    data.setup("fit")
    held, turns = data.train_set.dataset, set()
    for epoch in range(12):
        data.train_set.epoch.fill_(epoch)
        for row in range(len(held)):
            (x, y), whole = data.train_set[row], held.y[row].long().view(9, 9)
            options = [torch.rot90(one, k) for one in (whole, whole.flip(1)) for k in range(4)]
            (turn,) = [number for number, one in enumerate(options) if torch.equal(one.flatten(), y)]
            turns.add(turn)
            assert torch.equal(torch.where(y == 5, 2, y), x)
    assert turns == set(range(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, a: (q.replace("S", " "), a), "the question must have one start 'S'"),
        (lambda q, a: (q.replace("G", "S"), a), "the question must have one start 'S'"),
        (lambda q, a: (q.replace("G", "#"), a), "the question must have one goal 'G'"),
        (lambda q, a: (a, a), "the question must be of the characters '# SG'"),
        (lambda q, a: (q, a.replace("S", "o")), "the answer must be the question with a path"),
        (lambda q, a: (q, "o" + a[1:]), "the answer must be the question with a path"),
        (lambda q, a: (q + " ", a), "the question must have 81 characters, got 82"),
    ],
)
def test_a_wrong_maze_is_named(hard: Path, change: object, message: str) -> None:
    pairs = texts(10, 4, 0)
    write(hard / "train.csv", [*pairs[:3], change(*pairs[3]), *pairs[4:]])
    with pytest.raises(DataError) as error:
        MazeHard(str(hard), val_size=3).setup("fit")
    assert str(error.value) == f"line 5 of `{hard}/train.csv`: {message}. Repair that row or leave it out."


def test_mazes_that_leave_nothing_or_are_no_squares(hard: Path) -> None:
    with pytest.raises(SplitError) as error:
        MazeHard(str(hard), val_size=10).setup("fit")
    assert str(error.value) == (
        f"`val_size` must leave one of the 10 mazes in `{hard}/train.csv` that do not test to train on, got 10. Set "
        "`val_size=N` with a smaller one."
    )
    write(hard / "train.csv", [("S G", "SoG")])
    with pytest.raises(DataError, match=r"must be squares by rows, such as 900 characters, got 3.$"):
        _ = MazeHard(str(hard)).samples


@pytest.mark.parametrize("kind", [Sudoku, MazeHard])
def test_missing_and_empty_files(tmp_path: Path, kind: type) -> None:
    (tmp_path / "train.csv").write_text("question,answer\n")
    with pytest.raises(DatasetNotFoundError) as error:
        kind(root=str(tmp_path)).prepare_data()
    assert str(error.value) == (
        f"`{kind.__name__}` needs `train.csv` and `test.csv`; there is no `{tmp_path}/test.csv`. Set `root=PATH` to "
        "name the folder that holds them."
    )
    with pytest.raises(DataError, match=r"must have a row with a question and its answer, got none.$"):
        kind(root=str(tmp_path)).setup("fit")
