"""Tables in files: what columns become, what is refused, what checkpoints keep."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from deq_lightning import Table
from deq_lightning.data.errors import DataError
from deq_lightning.samples import ROW_LABELS, ROW_NUMBERS, ROWS

COLOURS = ["red", "blue", "green"]


def lines(rows: int = 30, seed: int = 0) -> list[str]:
    random = np.random.RandomState(seed)
    numbers = random.randn(rows, 2) * [3, 50] + [1, 1000]
    return [f"{a},{b},{COLOURS[row % 3]},{a + b},{'yes' if row % 2 else 'no'}" for row, (a, b) in enumerate(numbers)]


def table(folder: Path, rows: list[str] | None = None, header: str = "a,b,colour,sum,answer", **arguments) -> Table:
    path = folder / "rows.csv"
    path.write_bytes("\n".join([header, *(lines() if rows is None else rows)]).encode("utf-8", "surrogateescape"))
    return Table(str(path), **{"target": "sum", **arguments})


def ready(*args, **arguments) -> Table:
    data = table(*args, **arguments)
    data.setup()
    return data


def sets(data: Table) -> list[torch.Tensor]:
    return [part.tensors[0] for part in (data.train_set, data.val_set, data.test_set)]


def test_numbers_are_standardised_and_texts_one_hot_by_the_training_rows_alone(tmp_path: Path) -> None:
    data = ready(tmp_path, columns=["a", "b", "colour"], seed=3)
    rest, test = train_test_split(np.arange(30), test_size=6, random_state=3)
    train, val = train_test_split(rest, test_size=5, random_state=3)
    raw = [line.split(",") for line in lines()]
    numbers = np.array([[float(cell) for cell in row[:2]] for row in raw])
    scaler = StandardScaler().fit(numbers[train])
    one_hot = np.array([[row[2] == colour for colour in sorted(COLOURS)] for row in raw])
    expected = np.concatenate([scaler.transform(numbers), one_hot], axis=1)
    for part, rows in zip((data.train_set, data.val_set, data.test_set), (train, val, test), strict=True):
        x, y = part.tensors
        assert x.dtype == y.dtype == torch.float32
        np.testing.assert_allclose(x, expected[np.sort(rows)], atol=1e-5)
        np.testing.assert_allclose(y[:, 0], numbers[np.sort(rows)].sum(axis=1), rtol=1e-6)
    assert data.samples.arguments() == {"in_features": 5, "num_classes": 1, "targets": 1}
    mean, std = data.target_statistics()
    assert (mean, std) == (pytest.approx([numbers[train].sum(1).mean()]), pytest.approx([numbers[train].sum(1).std()]))


def test_a_constant_column_is_zero_and_an_unseen_category_all_zeros(tmp_path: Path) -> None:
    rows = [
        f"7,{'new' if row == 9 else 'old'},{row},{'test' if row > 7 else 'val' if row > 5 else 'train'}"
        for row in range(10)
    ]
    data = ready(tmp_path, rows, "a,b,y,part", target="y", split_column="part", task="regression")
    assert data.test_set.tensors[0].tolist() == [[0, 1], [0, 0]]
    assert data.split_sizes() == {"train": 6, "val": 2, "test": 2}
    assert data.target_statistics() == ([2.5], [pytest.approx(np.arange(6).std())])


@pytest.mark.parametrize(
    ("cells", "kind", "names"),
    [
        (["yes", "no", "no"], ROWS, ["no", "yes"]),
        (["True", "False"], ROWS, ["False", "True"]),
        (["10", "9", "2.0"], ROWS, ["2", "9", "10"]),
        (["0.5", "1"], ROW_NUMBERS, None),
        ([str(number) for number in range(21)], ROW_NUMBERS, None),
    ],
)
def test_what_a_target_means(cells: list[str], kind: str, names: list[str] | None, tmp_path: Path) -> None:
    rows = [f"{row},{cells[row % len(cells)]}" for row in range(42)]
    data = ready(tmp_path, rows, "x,y", target="y")
    assert (data.samples.kind, data.class_names) == (kind, names)
    if names:
        proportions = [part.tensors[1].bincount() / len(part) for part in (data.train_set, data.val_set, data.test_set)]
        assert torch.stack(proportions).std(dim=0).max() < 0.1
        assert data.train_set.tensors[1].dtype == torch.int64


def test_several_targets_and_chosen_columns(tmp_path: Path) -> None:
    data = ready(tmp_path, target=["sum", "b"], columns=["a"])
    assert (data.samples.features, data.samples.targets) == (1, 2)
    assert data.train_set.tensors[1].shape == (19, 2) and list(data.target_names) == ["sum", "b"]


def test_a_checkpoint_brings_the_statistics_and_new_rows_are_prepared_with_them(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, other = (
        ready(tmp_path, columns=["b", "colour"]),
        table(tmp_path / "other", lines(seed=1), columns=["b", "colour"]),
    )
    state = first.state_dict()
    torch.save(state, tmp_path / "state.pt")
    other.setup()
    before = sets(other)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))  # as Lightning does it, after `setup`
    after = sets(other)
    mean, std = (state["columns"][0][name] for name in ("mean", "std"))
    own = ready(tmp_path / "other", lines(seed=1), columns=["b", "colour"]).state_dict()["columns"][0]
    torch.testing.assert_close(after[2][:, 0], (before[2][:, 0] * own["std"] + own["mean"] - mean) / std)
    fresh = table(tmp_path / "other", lines(seed=1), columns=["b", "colour"])
    fresh.load_state_dict(state)  # and before it
    fresh.setup()
    assert all(torch.equal(*pair) for pair in zip(sets(fresh), after, strict=True))
    prepared = fresh.prepare([{"colour": "red", "b": mean + std}, {"colour": "pink", "b": str(mean)}])
    torch.testing.assert_close(prepared, torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]]))
    with pytest.raises(DataError, match=r"row 1 of `rows`, column `b`: must be a finite number.* got 'much'"):
        fresh.prepare([{"colour": "red", "b": "much"}])
    lacking = [{"columns": [{"name": "b"}]}, {**state, "classes": 3}, {**state, "columns": []}, "text"]
    wrong = [{"name": "b", "mean": 0.0, "std": std} for std in (0.0, "1", float("nan"))]
    for bad in (*lacking, *({**state, "columns": [column]} for column in wrong)):
        with pytest.raises(DataError, match="the checkpoint must say how the columns"):
            fresh.load_state_dict(bad)
    with pytest.raises(DataError, match="`checkpoint` names `zzz`"):
        fresh.load_state_dict({**state, "columns": [{"name": "zzz", "mean": 0.0, "std": 1.0}]})


GOOD = lines()


def with_line(number: int, line: str) -> list[str]:
    return [*GOOD[: number - 2], line, *GOOD[number - 1 :]]  # the header is line 1


REFUSED = {
    "no such target": ({"target": "sun"}, "`target` names `sun`, and .* column. Did you mean `sum`. Known: a, b"),
    "no such column": ({"columns": ["zzz"]}, "`columns` names `zzz`, and .* Known: a, b, colour, sum, answer."),
    "no such split": ({"split_column": "c"}, "`split_column` names `c`"),
    "no rows": ({"rows": []}, "must have a line of column names and rows below it, got no rows."),
    "empty": ({"rows": [], "header": ""}, "got no rows."),
    "short row": ({"rows": with_line(4, "1,2")}, "line 4 of `.*rows.csv` must have 5 cells, as the first .*, got 2."),
    "missing": ({"rows": with_line(5, "1,,red,1,yes")}, "line 5 of `.*`, column `b`: a value is missing, got ''."),
    "missing text": ({"rows": with_line(5, "1,2,,1,yes")}, "line 5 of `.*`, column `colour`: a value is missing"),
    "marked": ({"rows": with_line(6, "NA,2,red,1,yes")}, "line 6 of `.*`, column `a`: a value is missing, got 'NA'."),
    "infinite": ({"rows": with_line(7, "1,inf,red,1,yes")}, "line 7 of `.*`, column `b`: must be .*'inf'"),
    "overflow": ({"rows": with_line(7, "1,1e999,red,1,yes")}, "line 7 .* must be a finite number"),
    "a text": ({"rows": with_line(8, "1,2,red,5kg,yes")}, "line 8 of `.*`, column `sum`: must be .*'5kg'"),
    "twice": ({"header": "a,b,a,sum,answer"}, "must have one column of each name, got two of `a`. Rename one."),
    "no name": ({"header": ",b,c,sum,answer"}, "must name every column, got no name for number 1."),
    "bytes": ({"rows": with_line(9, "1,2,\udcff,1,yes")}, "line 9 of `.*` must be UTF-8 text .* Save it as UTF-8."),
    "huge": ({"rows": with_line(3, "1,2," + "x" * 200_000 + ",1,yes")}, "line 3 of `.*` must be comma.*limit"),
    "quotes": ({"rows": [*GOOD, '1,2,"red,1,yes']}, "line 32 of `.*` must be comma-separated text"),
    "one value": ({"rows": [f"{row},2,red,5.5,no" for row in range(30)]}, "`sum` of .* must vary .* got 5.5 in all"),
    "one class": ({"rows": [f"{row},2,red,5,no" for row in range(30)], "target": "answer"}, "`answer` of .* must vary"),
    "rare class": ({"rows": with_line(3, "1,2,red,4,maybe"), "target": "answer"}, "got 1 of class `maybe`"),
    "text to regress": ({"target": "answer", "task": "regression"}, "`answer`: must be a number for"),
    "no labels": ({"target": ["a", "b"], "task": "multilabel"}, "line 2 of `.*`, column `a`: must be 0 or 1 for"),
    "text for a label": ({"target": ["answer"], "task": "multilabel"}, "column `answer`: must be 0 or 1 for"),
    "several classes": ({"target": ["a", "b"], "task": "classification"}, "`target` must be one column"),
    "too large": ({"val_size": 29}, "`val_size` . `test_size` must leave 1 rows, or more, to train on, got 35 of 30."),
    "too small": ({"val_size": 1, "target": "answer"}, "`val_size` must stand for 2 rows, one of each class"),
    "no split": ({"split_column": "colour"}, "line 2 of `.*`, column `colour`: must be train, val or test, got 'red'"),
    "nothing left": ({"rows": ["1", "2"], "header": "sum"}, "must have a column to predict from beside the target"),
    "names": ({"rows": [f"{r},1,name {r},{r}.5,no" for r in range(900)]}, "`colour` .* 256 different texts or fewer"),
}


def test_several_labels(tmp_path: Path) -> None:
    rows = [f"{row},{int(row % 3 == 0)},{row % 2}" for row in range(40)]
    data = ready(tmp_path, rows, "a,three,odd", target=["three", "odd"], task="multilabel")
    assert data.samples.kind == ROW_LABELS and data.samples.classes == 2 and data.class_names == ["three", "odd"]
    x, y = (
        torch.cat([part.tensors[place] for part in (data.train_set, data.val_set, data.test_set)]) for place in (0, 1)
    )
    assert torch.equal(y[x[:, 0].argsort()].long(), torch.stack([torch.arange(40) % 3 == 0, torch.arange(40) % 2], 1))


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_a_line(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as error:
        table(tmp_path, **arguments).prepare_data()
    assert "\n" not in str(error.value) and len(str(error.value)) < 450


@pytest.mark.parametrize(
    "arguments", [{"columns": ["sum", "a"]}, {"split_column": "sum"}, {"columns": ["a", "a"]}, {"target": ["a", "a"]}]
)
def test_a_column_is_used_once(arguments: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`target`, `columns` and `split_column` must name each column once, got `"):
        table(tmp_path, **arguments)


@pytest.mark.parametrize("name", ["nothing.csv", "rows.txt", "rows.parquet", "folder.csv"])
def test_a_file_that_is_none_is_a_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where it is not installed
    (tmp_path / "folder.csv").mkdir()
    for file in ("rows.txt", "rows.parquet"):
        (tmp_path / file).write_text("a,b\n1,2\n")
    advice = {"rows.txt": "Save it as one", "rows.parquet": "pip install pyarrow"}.get(name, "Set `path=FILE`")
    with pytest.raises(DataError, match=advice):
        Table(str(tmp_path / name), "a").prepare_data()


def test_parquet_is_read_through_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the four names that are used: it is an extra, and seldom installed."""
    columns = {"x": [0.5, 1.5, None], "y": [True, False, True]}
    made = types.SimpleNamespace(
        column_names=list(columns),
        columns=[types.SimpleNamespace(to_pylist=lambda cells=cells: cells) for cells in columns.values()],
        num_rows=3,
    )
    package = types.ModuleType("pyarrow")
    package.parquet = types.SimpleNamespace(read_table=lambda path: made)
    monkeypatch.setitem(sys.modules, "pyarrow", package)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"row 3 of `.*`, column `x`: a value is missing"):
        Table(str(tmp_path / "rows.parquet"), "y").prepare_data()
    package.parquet.read_table = lambda path: 1 / 0
    with pytest.raises(DataError) as error:
        Table(str(tmp_path / "rows.parquet"), "y").prepare_data()
    assert str(error.value).count("Copy that file again") == 1


def test_new_rows_need_no_target_and_are_encoded_as_the_training_was(folder: Path) -> None:
    data = ready(folder)
    new = Table("gone.csv", target="sum")
    new.load_state_dict(data.state_dict())
    (folder / "new.csv").write_text("answer,colour,b,a\nyes,blue,1000.0,4.0\nno,violet,900,1\n")
    inputs = new.inputs("new.csv")
    assert inputs.names == ["line 2", "line 3"]
    (x,) = inputs.predict_dataloader()
    first = {"a": "4", "b": "1000", "colour": "blue", "answer": "yes"}
    expected = data.prepare([first, {"a": "1", "b": "900", "colour": "violet", "answer": "no"}])
    assert torch.equal(x, expected)
