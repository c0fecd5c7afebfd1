"""The datasets of PyTorch Geometric by name: what they hold comes as it is, and what their files name is not run."""

import os
import pickle
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from support.fake_data import make_ppi, make_tu
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.datasets import PPI as GeometricPPI
from torch_geometric.datasets import FakeDataset, Planetoid, TUDataset

from deq_lightning import GeometricDataset, Graphs
from deq_lightning.cli import main
from deq_lightning.data import DataError, DatasetNotFoundError
from deq_lightning.samples import GRAPHS, NODE_LABELS, NODES
from deq_lightning.trust import plain_pickles

FAKE = {"num_graphs": 40, "num_classes": 3}


class Trap:
    """What makes a folder as soon as it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("sprung",)


def ready(name: str, options: dict | None = None, root: Path | str = "none", **more: object) -> GeometricDataset:
    data = GeometricDataset(name, options, str(root), **more)
    data.prepare_data()
    data.setup()
    return data


def make_planetoid(root: Path, nodes: int = 600, tested: int = 20) -> Path:
    """Write the files of Cora's format, pickles of Python 2 as published, and return their folder."""
    folder = root / "Cora" / "raw"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    labels, x = np.eye(3)[draws.integers(3, size=nodes)], scipy.sparse.csr_matrix(draws.random((nodes, 7)))
    graph = defaultdict(list, {number: [(number + 1) % nodes, (number - 1) % nodes] for number in range(nodes)})
    known = nodes - tested
    parts = {"x": x[:9], "tx": x[known:], "allx": x[:known], "graph": graph}
    parts |= {"y": labels[:9], "ty": labels[known:], "ally": labels[:known]}
    for name, part in parts.items():
        (folder / f"ind.cora.{name}").write_bytes(pickle.dumps(part, protocol=2))
    (folder / "ind.cora.test.index").write_text("".join(f"{one}\n" for one in range(known, nodes)))
    return folder


def test_a_collection_is_what_the_class_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tu(tmp_path, monkeypatch)
    data = ready("TUDataset", {"name": "PROTEINS", "use_node_attr": True}, tmp_path, normalization="none", val_size=3)
    wanted = TUDataset(str(tmp_path), "PROTEINS", use_node_attr=True)
    assert data.samples.kind == GRAPHS and data.samples.features == wanted.num_features
    found = [one for part in (data.train_set, data.val_set, data.test_set) for one in part]
    assert len(found) == len(wanted) and sum(one.x.sum() for one in found) == sum(one.x.sum() for one in wanted)
    number = int(data.file_names[0].split("[")[1][:-1])
    assert torch.equal(data.test_set[0].x, wanted[number].x) and data.test_set[0].y == wanted[number].y


def test_published_parts_and_masks_are_the_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ppi(tmp_path, monkeypatch, features=5, labels=4)
    data = ready("PPI", root=tmp_path / "PPI")
    assert data.samples.kind == NODE_LABELS and data.split_sizes() == {"train": 3, "val": 2, "test": 2}
    (wanted, *_) = GeometricPPI(str(tmp_path / "PPI"), split="val")
    assert torch.equal(data.val_set[0].x, wanted.x)
    make_planetoid(tmp_path)
    data = ready("Planetoid", {"name": "Cora"}, tmp_path)
    assert data.samples.kind == NODES and data.samples.features == 7 and data.samples.classes == 3
    assert data.split_sizes() == {"train": 9, "val": 500, "test": 20}
    assert torch.equal(data.train_set[0].test_mask, Planetoid(str(tmp_path), "Cora")[0].test_mask)


def test_one_of_several_published_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.stack([torch.arange(12).roll(fold) % 3 for fold in range(2)], dim=1)
    graph = Data(x=torch.ones(12, 2), edge_index=torch.tensor([[0], [1]]), y=torch.arange(12) % 2)
    for number, name in enumerate(("train", "val", "test")):
        graph[f"{name}_mask"] = masks == number
    monkeypatch.setattr("torch_geometric.datasets.Actor", lambda root: [graph])
    monkeypatch.setattr(GeometricDataset, "_dataset", lambda self, part: [graph])
    for fold in range(2):
        (found,) = ready("Actor", fold=fold).train_set
        assert torch.equal(found.val_mask, masks[:, fold] == 1)
    with pytest.raises(DataError, match=r"`fold` must be below 2, the number of splits, got 2\."):
        ready("Actor", fold=2)


def test_generated_graphs_are_by_seed_and_draw_nothing_from_the_run() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first, second, other = (ready("FakeDataset", FAKE, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.train_set[0].x, second.train_set[0].x)
    assert not torch.equal(first.train_set[0].x[:2], other.train_set[0].x[:2])
    assert torch.equal(before[0], torch.get_rng_state()) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_a_saved_dataset_is_read_as_its_graphs(folder: Path) -> None:
    dataset = FakeDataset(num_graphs=30, num_classes=2)
    InMemoryDataset.save(list(dataset), "all.pt")
    data = Graphs("all.pt", normalization="none")
    data.setup()
    number = int(data.file_names[0].split("[")[1][:-1])
    assert torch.equal(data.test_set[0].x, dataset[number].x)
    assert torch.equal(data.test_set[0].edge_index, dataset[number].edge_index)
    InMemoryDataset.save([dataset[0]], "one.pt")
    with pytest.raises(DataError, match="two classes or more"):
        Graphs("one.pt").setup()


@pytest.mark.parametrize("place", ["raw/ind.cora.graph", "processed/data.pt", "processed/pre_transform.pt"])
def test_a_file_that_would_run_something_is_refused(place: str, folder: Path) -> None:
    make_planetoid(folder)
    trap = folder / "Cora" / place
    trap.parent.mkdir(exist_ok=True)
    if trap.suffix == ".pt":
        torch.save(Trap(), trap)
    else:
        trap.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DatasetNotFoundError, match=rf"`Planetoid` cannot be read from `.` \(names `{os.name}\.mkdir`"):
        ready("Planetoid", {"name": "Cora"}, ".")
    assert not Path("sprung").exists()


def test_pickles_are_checked_in_the_block_alone(folder: Path) -> None:
    trap, array = pickle.dumps(Trap()), pickle.dumps(np.ones(2))
    for unpickle in (pickle.loads, pickle._loads):  # in C and in Python
        with plain_pickles(), pytest.raises(pickle.UnpicklingError, match="which is no data, and was not run"):
            unpickle(trap)
        assert not Path("sprung").exists()
        with plain_pickles():
            assert unpickle(array).tolist() == [1, 1]
    pickle.loads(trap)
    assert Path("sprung").exists()


def test_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "GraphClassification", "--model.net", "IGNNGraphClassifier", "--trainer.max_epochs", "1"]
    options = ["--data", "GeometricDataset", "--data.name", "FakeDataset", "--data.options", str(FAKE)]
    main(["fit", *options, *model, "--trainer.logger", "false"])
    assert "test_acc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("TUDatset", {}, r"`name` must be a class of `torch_geometric\.datasets`, got 'TUDatset'\. Near: TUDataset"),
        ("Planetoid", {"name": "Cora"}, r"cannot be read from `none` \(its files are missing\)\. Set `root=PATH`"),
        ("Planetoid", {"nam": "Cora"}, "unexpected keyword argument 'nam'"),
        ("FakeHeteroDataset", {}, "must be a `Data` with one kind of nodes, got HeteroData"),
    ],
)
def test_what_cannot_be_read(name: str, options: dict, message: str, folder: Path) -> None:
    with pytest.raises((ValueError, DataError, DatasetNotFoundError), match=message):
        ready(name, options)
