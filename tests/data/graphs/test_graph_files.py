"""Graphs of one's own: what is saved comes back, nothing in a file is run, what cannot be used is said in a line."""

import csv
import os
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from support.runs import QUIET, trainer
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import ClusterData
from torch_geometric.transforms import GCNNorm

from deq_lightning import Graphs, PredictionWriter
from deq_lightning.cli import main
from deq_lightning.data import DataError, SplitError
from deq_lightning.samples import GRAPHS, NODE_LABELS, NODES

MASKED = {f"{name}_mask": torch.arange(6) % 3 == number for number, name in enumerate(("train", "val", "test"))}


def graph(number: int, y: Tensor | None = None, nodes: int = 6, **more: Any) -> Data:
    """Return a random graph, without loops or edges that occur twice, whose class shows."""
    g = torch.Generator().manual_seed(number)
    edges = torch.rand(nodes, nodes, generator=g).triu(1).gt(0.5).nonzero().t()
    y = torch.tensor([number % 2]) if y is None else y
    x = torch.randn(nodes, 3, generator=g) + 2 * (number % 2)
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], dim=1), y=y, **more)


def save(folder: Path, graphs: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(graphs):
        torch.save(one, folder / f"{number:03d}.pt")
    return folder


def ready(root: Path | str, **options: Any) -> Graphs:
    data = Graphs(str(root), **options)
    data.setup()
    return data


def same(one: Data, other: Data) -> bool:
    return all(torch.equal(one[key], other[key]) for key in ("x", "edge_index", "edge_weight", "y"))


def test_batches_are_those_made_by_hand(folder: Path) -> None:
    """Whether graphs are saved as objects or as their tensors, in files of their own or in one."""
    graphs = [graph(number, nodes=4 + number % 3) for number in range(40)]
    save(folder / "a", graphs)
    save(folder / "b", [{"x": one.x, "edge_index": one.edge_index, "y": one.y[0]} for one in graphs])
    torch.save(graphs, "c.pt")
    data = ready("a", batch_size=5)
    assert data.samples.arguments() == {"in_features": 3, "num_classes": 2, "perron": 1.0}
    assert data.samples.kind == GRAPHS and data.split_sizes() == {"train": 26, "val": 6, "test": 8}
    numbers = [int(Path(name).stem) for name in data.file_names]
    wanted = Batch.from_data_list([GCNNorm()(graphs[number]) for number in numbers[:5]])
    for root in ("a", "b", "c.pt"):
        found = next(iter(ready(root, batch_size=5).test_dataloader()))
        assert same(found, wanted) and torch.equal(found.batch, wanted.batch)
    torch.save(graphs, "d.pt")
    assert ready("d.pt").file_names == [f"d.pt[{number}]" for number in numbers]


def test_splits_are_stratified_and_by_seed(folder: Path) -> None:
    save(folder / "a", [graph(number, torch.tensor([int(number % 4 == 0)])) for number in range(80)])
    data, other = ready("a", test_size=8, val_size=0.25), ready("a", test_size=8, val_size=0.25, seed=1)
    for part, size in (("train", 52), ("val", 20), ("test", 8)):
        labels = torch.cat([one.y for one in getattr(data, f"{part}_set")])
        assert len(labels) == size and labels.sum() == size // 4
    assert data.file_names == ready("a", test_size=8, val_size=3).file_names != other.file_names


def test_folders_name_the_splits(folder: Path) -> None:
    graphs = [graph(number) for number in range(30)]
    save(folder / "a/train", graphs[:20])
    save(folder / "a/test", graphs[20:])
    data = ready("a", val_size=4)
    assert data.split_sizes() == {"train": 16, "val": 4, "test": 10}
    assert [one.x[0, 0] for one in data.test_set] == [one.x[0, 0] for one in graphs[20:]]
    assert data.file_names == [f"a/test/{number:03d}.pt" for number in range(10)]


@pytest.mark.parametrize("kind", [NODES, NODE_LABELS])
def test_nodes_are_split_by_masks_or_by_seed_or_with_their_graphs(kind: str, folder: Path) -> None:
    y = torch.arange(6) % 2 if kind == NODES else torch.arange(12).view(6, 2) % 2
    torch.save(graph(0, y, **MASKED), "masked.pt")
    data = ready("masked.pt")
    assert data.samples.kind == kind and data.samples.classes == 2 and data.unit == "nodes"
    assert data.split_sizes() == {"train": 2, "val": 2, "test": 2} and data.file_names is None
    assert data.train_set is data.test_set
    large = graph(0, y.repeat(10, *[1] * (y.dim() - 1)), nodes=60)
    torch.save(large, "one.pt")
    (one,) = ready("one.pt", val_size=10, test_size=0.5).train_set
    masks = [one.train_mask, one.val_mask, one.test_mask]
    assert [int(mask.sum()) for mask in masks] == [20, 10, 30] and sum(mask.long() for mask in masks).eq(1).all()
    if kind == NODES:
        assert [int(one.y[mask].sum()) for mask in masks] == [10, 5, 15]
    save(folder / "several", [graph(number, y) for number in range(10)])
    several = ready("several", val_size=2, test_size=3)
    assert several.split_sizes() == {"train": 5, "val": 2, "test": 3} and several.unit == "graphs"
    assert several.train_set[0].y.dtype == (torch.long if kind == NODES else torch.float32)


def test_the_bound_is_the_eigenvalue(folder: Path) -> None:
    weights = [torch.rand(graph(number).num_edges) - 0.2 for number in range(12)]
    save(folder / "a", [graph(number, edge_weight=weight) for number, weight in enumerate(weights)])
    data, scaled = ready("a", normalization="none"), ready("a", normalization="perron")

    def largest(one: Data) -> float:
        dense = torch.zeros(6, 6).index_put(tuple(one.edge_index), one.edge_weight.abs())
        return torch.linalg.eigvals(dense).abs().max().item()

    both = [[*data.train_set, *data.val_set, *data.test_set] for data in (data, scaled)]
    assert data.samples.perron == pytest.approx(max(map(largest, both[0])), rel=1e-5)
    assert [largest(one) for one in both[1]] == pytest.approx([1.0] * 12, rel=1e-5) and scaled.samples.perron == 1
    with pytest.raises(DataError, match=r"`edge_weight` of `a/000.pt` must be 0 or more .* Set `normalization=perron`"):
        ready("a")


def test_edge_features_stay_with_their_edges(folder: Path) -> None:
    """Also where loops come in between."""
    edges = torch.tensor([[0, 1, 1, 2], [1, 1, 0, 0]])
    save(folder / "a", [Data(torch.ones(3, 1), edges, torch.arange(1.0, 5), torch.tensor(n % 2)) for n in range(8)])
    one = ready("a", val_size=2, test_size=2).train_set[0]
    found = {(s, t): value for (s, t), value in zip(one.edge_index.t().tolist(), one.edge_attr[:, 0], strict=True)}
    assert found == {(0, 1): 1, (1, 1): 2, (1, 0): 3, (2, 0): 4, (0, 0): 0, (2, 2): 0}


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch sprung",)


class Touches:
    """Writes a file when it is unpickled, by a function whose module PyTorch does not block."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("sprung"),)


class Plain:
    """Makes a graph without naming anything but its class."""

    def __reduce__(self) -> tuple:
        return Data, (torch.ones(2, 1), torch.tensor([[0], [1]]))


class Loads:
    """Makes PyTorch Geometric load another file, by a class that it has declared to be safe."""

    def __reduce__(self) -> tuple:
        return ClusterData, (Plain(), 2, False, ".")


def test_trust_in_files_of_graphs_is_not_needed(folder: Path) -> None:
    save(folder / "part_2", [])
    torch.save(Touches(), "part_2/metis.pt")
    for trap, name in ((Runs(), "posix.system"), (Loads(), "torch_geometric.loader.cluster.ClusterData")):
        for content in (trap, {"x": trap}, Data(x=torch.ones(1, 1), y=trap), [graph(0), trap]):
            torch.save(content, "trap.pt")
            with pytest.raises(DataError, match=f"^`trap.pt` names `{re.escape(name)}`, .* it was not run"):
                ready("trap.pt")
    torch.save({"state_dict": Loads()}, "other.ckpt")
    with pytest.raises(UnpicklingError, match="ClusterData was not an allowed global"):
        torch.load("other.ckpt", weights_only=True)
    before = torch.serialization.get_safe_globals()
    assert not Path("sprung").exists() and Data in before
    torch.load("part_2/metis.pt", weights_only=False)
    assert Path("sprung").exists()


def changed(**entries: Any) -> Data:
    one = graph(3)
    for key, value in entries.items():
        one[key] = value
    return one


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in graph(3).to_dict().items() if name != key}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without("x"), "`a/003.pt` must have `x`, got edge_index, y. Add it."),
        (without("edge_index"), "`a/003.pt` must have `edge_index`, got x, y."),
        (without("y"), "`a/003.pt` must have `y`, a class, or one for each node."),
        (changed(x=torch.ones(6)), "`x` of `a/003.pt` must be numbers (nodes, features), got (6,)."),
        (changed(x=torch.ones(6, 2)), "`x` of `a/003.pt` must have 3 features, as the graphs before it, got 2."),
        (changed(x=torch.full((6, 3), torch.nan)), "`x` of `a/003.pt` must be finite, got nan."),
        (changed(x="text"), "`x` of `a/003.pt` must be a dense tensor of real numbers, got str."),
        (
            changed(x=torch.ones(1, 1).expand(10**12, 3)),
            "`x` of `a/003.pt` must have all its numbers in the file. Save",
        ),
        (changed(edge_index=torch.ones(2, 1)), "`edge_index` of `a/003.pt` must be whole numbers (2, edges), got tor"),
        (changed(edge_index=torch.ones(1, 2).long()), "`edge_index` of `a/003.pt` must be whole numbers (2, edges)"),
        (changed(edge_index=torch.tensor([[0], [6]])), "`edge_index` of `a/003.pt` must be numbers of its nodes, 0 to"),
        (changed(edge_index=torch.tensor([[0], [-1]])), "must be numbers of its nodes, 0 to 5, got -1."),
        (changed(edge_weight=torch.ones(1)), "`edge_weight` of `a/003.pt` must have one row for each of the"),
        (changed(edge_attr=torch.ones(graph(3).num_edges)), "`edge_attr` of `a/003.pt` must have 0 features, as"),
        (changed(y=torch.tensor([1.5])), "`y` of `a/003.pt` must be whole numbers, got torch.float32."),
        (changed(y=torch.tensor([5])), "`y` of `a/003.pt` must be classes numbered 0 to 2, as there are 3, got 5."),
        (changed(y=torch.tensor([-1])), "`y` of `a/003.pt` must be classes numbered 0 to 2, as there are 3, got -1."),
        (changed(y=torch.zeros(3)), "`y` of `a/003.pt` must be one class, or as of the other graphs one for each of"),
        (changed(y=torch.tensor([2])), "there must be 3 or more graphs of class 2, one for each split, got 1. Add"),
        (7, "`a/003.pt` cannot be read as graphs, it is damaged or holds something else (a graph must be a `Data`"),
        ([], "`a/003.pt` must hold a graph or more, got none."),
    ],
)
def test_what_cannot_be_used_is_said_with_its_file(bad: Any, message: str, folder: Path) -> None:
    graphs = [graph(number) for number in range(10)]
    save(folder / "a", [*graphs[:3], bad, *graphs[4:]])
    with pytest.raises(DataError, match=re.escape(message)) as refusal:
        ready("a")
    assert "\n" not in str(refusal.value)


def test_refusals_of_whole_collections(folder: Path) -> None:
    def refused(root: str, message: str, kind: type[Exception] = DataError, **options: Any) -> None:
        with pytest.raises(kind, match=re.escape(message)):
            ready(root, **options)

    refused("nowhere", "there is no `nowhere`. Set `root=PATH`")
    save(folder / "empty", [])
    refused("empty", "`empty` has no graphs in it (*.pt).")
    Path("text.pt").write_text("text")
    refused("text.pt", "`text.pt` cannot be read as graphs, it is damaged")
    torch.save([graph(0), graph(2)], "one.pt")
    refused("one.pt", "`y` must be of two classes or more, got [0] for all")
    torch.save([graph(number) for number in range(10)], "ten.pt")
    refused("ten.pt", "`val_size` must stand for 2 graphs or more, got 1 of 10.", SplitError, val_size=1)
    refused("ten.pt", "must leave 2 graphs or more to train on, got 10 of 10", SplitError, val_size=5, test_size=5)
    save(folder / "a/test", [graph(0)])
    refused("a", "`a` must have a folder `train` beside `test`")
    save(folder / "a/train", [graph(2)])
    save(folder / "a/val", [graph(1)])
    refused("a", "the training graphs must have every class, got none of class 1.", SplitError)
    y = torch.arange(6) % 2
    torch.save([graph(0, y, **MASKED), graph(1, y)], "half.pt")
    refused("half.pt", "`half.pt[1]` must have `train_mask`, `val_mask`, `test_mask`, each with True or False")
    torch.save(graph(0, y, **{**MASKED, "val_mask": MASKED["test_mask"]}), "shared.pt")
    refused("shared.pt", "the masks of `shared.pt` must not share nodes.")
    torch.save(graph(0, y, **{**MASKED, "val_mask": torch.zeros(6).bool()}), "none.pt")
    refused("none.pt", "`val_mask` must have nodes in it", SplitError)


@pytest.mark.slow
def test_a_fit_and_new_graphs_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = [graph(number, nodes=4 + number % 3) for number in range(200)]
    save(folder / "mine", graphs)
    net = ["--model.net", "IGNNGraphClassifier", "--model.net.width", "8", "--model.net.depth", "1"]
    data = ["--data", "Graphs", "--data.root", "mine", "--model", "GraphClassification", *net, *QUIET, "--name", "a"]
    cli = main(["fit", *data, "--trainer.max_steps", "20", "--model.optimizer.lr", "0.02"])
    trainer(folder, PredictionWriter("test.csv")).predict(cli.model, cli.datamodule)
    tested = {Path(row["file"]).name: row for row in csv.DictReader(Path("test.csv").open())}
    assert sum(row["prediction"] == row["label"] for row in tested.values()) > 30  # of 40
    save(folder / "new", [without("y") if number == 3 else one for number, one in enumerate(graphs)])
    Path("mine").rename("gone")
    torch.save(changed(x=torch.ones(6, 2)), "new/003.pt")
    path = ["--predictions.path", "new.csv"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["predict", "--ckpt_path", "checkpoints/a/best.ckpt", *QUIET, "--inputs", "new", *path])
    assert exit_.value.code == 1 and "`x` of `003.pt` must have 3 features" in capsys.readouterr().err
    new = {row["file"]: row for row in csv.DictReader(Path("new.csv").open())}
    assert len(new) == 199 and "label" not in new["004.pt"] and new["004.pt"]["converged"] == "1"
    for name, row in tested.items():
        assert name == "003.pt" or new[name]["prediction"] == row["prediction"]
        assert name == "003.pt" or float(new[name]["probability"]) == pytest.approx(float(row["probability"]), abs=1e-4)


def test_new_graphs_are_as_those_of_the_test_split(folder: Path) -> None:
    torch.save([graph(number) for number in range(20)], "a.pt")
    data = ready("a.pt", eval_batch_size=3)
    numbers = [int(re.search(r"\[(\d+)", name)[1]) for name in data.file_names]
    torch.save([{"x": graph(n).x, "edge_index": graph(n).edge_index} for n in numbers], "new.pt")
    other = Graphs("nowhere", eval_batch_size=3)
    other.load_state_dict(data.state_dict())
    for _ in range(2):  # a loader may be read again
        for found, wanted in zip(other.inputs("new.pt").predict_dataloader(), data.test_dataloader(), strict=True):
            assert found.y is None and torch.equal(found.edge_weight, wanted.edge_weight)
            assert torch.equal(found.x, wanted.x) and torch.equal(found.batch, wanted.batch)
    with pytest.raises(DataError, match=r"^the checkpoint must say how many features"):
        other.load_state_dict({"features": "many"})
    with pytest.raises(DataError, match=r"^there are no graphs in `gone`"):
        other.inputs("gone")
