"""The table of predictions."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.runs import trainer
from torch_geometric.data import Data

from deq_lightning import (
    MDEQ,
    IGNNNodeClassifier,
    ImageClassification,
    KarateClub,
    NodeClassification,
    PredictionWriter,
    RandomDots,
)
from deq_lightning.configured import CombinationError, RunError

Row = dict[str, str]


@pytest.mark.parametrize(("path", "got"), [(".", "."), ("", "''")])
def test_predictions_are_not_written_to_a_folder(path: str, got: str) -> None:
    message = f"`path` must be a file, got {got}. Add a name, such as predictions.csv."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PredictionWriter(path)


def read() -> list[Row]:
    return list(csv.DictReader(Path("table.csv").open()))


def written(data: object, *batches: tuple[int, Sequence[int]]) -> list[Row]:
    """Return the table of batches, each given by the number of its rows and the indices of its samples."""
    writer, run = PredictionWriter("table.csv"), SimpleNamespace(datamodule=data, global_rank=0)
    writer.on_predict_start(run, None)
    for number, (count, indices) in enumerate(batches):
        writer.write_on_batch_end(run, None, {"prediction": torch.zeros(count)}, indices, None, number, 0)
    writer.on_predict_end(run, None)
    return read()


@pytest.mark.filterwarnings("ignore")
def test_what_the_data_knows_of_each_sample_is_beside_it(folder: Path) -> None:
    data = RandomDots(size=8, max_shift=3, test_size=20, eval_batch_size=8)
    task = ImageClassification(MDEQ(in_channels=2, num_classes=4, channels=(4,), groups=2, head_channels=(2,)))
    trainer(folder, PredictionWriter("table.csv")).predict(task, data, return_predictions=False)
    rows = read()
    assert list(rows[0])[:3] == ["index", "shift", "prediction"]
    assert [int(row["index"]) for row in rows] == list(range(20))
    assert [int(row["shift"]) for row in rows] == data.sample_columns["shift"]
    assert [int(row["label"]) for row in rows] == data.test_set.tensors[1].tolist()
    assert [row["class"] for row in rows] == [data.class_names[int(row["prediction"])] for row in rows]


def test_columns_follow_the_indices(folder: Path) -> None:
    """Which, with several processes, are not in order."""
    data = SimpleNamespace(sample_columns={"depth": [0.5, 1.5, 2.5, 3.5]}, file_names=["a", "b", "c", "d"])
    rows = written(data, (2, [3, 1]), (1, [0]))
    assert [(row["index"], row["file"], row["depth"]) for row in rows] == [
        ("3", "d", "3.5"),
        ("1", "b", "1.5"),
        ("0", "a", "0.5"),
    ]


def test_rows_that_are_no_samples_are_numbered_and_have_no_such_columns(folder: Path) -> None:
    data = SimpleNamespace(sample_columns={"depth": [0.5, 1.5]}, file_names=["a", "b"])
    for indices in ([0], [], None):
        rows = written(data, (3, indices), (2, indices))
        assert [row["index"] for row in rows] == list("01234") and rows[0].keys() == {"index", "prediction"}


@pytest.mark.filterwarnings("ignore")
def test_the_nodes_of_a_graph_are_such_rows(folder: Path) -> None:
    data = KarateClub()
    data.setup()
    graph: Data = data.test_set[0]
    task = NodeClassification(IGNNNodeClassifier(in_features=34, num_classes=4, widths=(4,)))
    trainer(folder, PredictionWriter("table.csv")).predict(task, KarateClub(), return_predictions=False)
    rows = read()
    assert [int(row["index"]) for row in rows] == list(range(20))
    assert [int(row["label"]) for row in rows] == graph.y[graph.test_mask].tolist()


def test_several_test_sets_share_no_column(folder: Path) -> None:
    data = SimpleNamespace(sample_columns={"depth": [0.5, 1.5]}, test_names=["short", "long"])
    assert written(data, (2, [0, 1]))[0].keys() == {"set", "index", "prediction"}


def test_a_column_that_is_too_short_is_a_line(folder: Path) -> None:
    data = SimpleNamespace(sample_columns={"depth": [0.5, 1.5]})
    message = (
        "`SimpleNamespace` must have a value of `depth` for every sample that `predict` sees, got 2 values, and none "
        "for sample 2."
    )
    with pytest.raises(RunError, match=f"^{re.escape(message)}$"):
        written(data, (2, [1, 2]))


def test_lines_of_json_are_the_rows_of_the_table(folder: Path) -> None:
    columns = {"prediction": torch.tensor([1, 0]), "residual": torch.tensor([0.1, torch.nan])}
    columns["probabilities"] = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    data = SimpleNamespace(file_names=["a,b", "\udce9", "c"], class_names=["no", "yes"], taken=[2, 1])
    for path in ("table.csv", "table.jsonl"):
        task, run = SimpleNamespace(), SimpleNamespace(datamodule=data, global_rank=0)
        writer = PredictionWriter(path, probabilities=True)
        writer.on_predict_start(run, task)
        for number in range(2):
            batch = {name: values[number : number + 1] for name, values in columns.items()}
            writer.write_on_batch_end(run, task, batch, [], None, number, 0)
        writer.on_predict_end(run, task)
        assert task.every_probability
    first, second = map(json.loads, Path("table.jsonl").read_text().splitlines())
    assert second["residual"] is None and second["file"] == "\udce9"
    rows = read()
    assert [{name: str(value) for name, value in first.items()}, str(second["class"])] == [rows[0], rows[1]["class"]]
    assert first == {
        **{"index": 2, "file": "c", "prediction": 1, "residual": pytest.approx(0.1), "class": "yes"},
        **{"probability_no": 0.25, "probability_yes": 0.75},
    }


def test_probabilities_that_are_not_there(folder: Path) -> None:
    run, writer = SimpleNamespace(datamodule=None, global_rank=0), PredictionWriter("table.csv", probabilities=True)
    writer.on_predict_start(run, SimpleNamespace())
    with pytest.raises(CombinationError, match="`probabilities` need one class for each row, which `SimpleNamespace`"):
        writer.write_on_batch_end(run, SimpleNamespace(), {"f1": torch.zeros(1)}, [0], None, 0, 0)
    writer.on_exception(run, None, RuntimeError())
    assert not any(folder.iterdir())
