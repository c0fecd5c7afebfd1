"""Graphs from files and generators: folds, splits, weights of edges, and what bad files are told."""

import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel
from support.fake_data import make_ppi, make_tu
from torch import Tensor
from torch_geometric.data import Batch, Data

from deq_lightning import PPI, Chains, GraphDataModule, KarateClub, TUGraphs
from deq_lightning.data.errors import DataError, DatasetNotFoundError, SplitError
from deq_lightning.data.graphs.tu import normalised
from deq_lightning.perron import perron_bound
from deq_lightning.samples import NODES


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds two collections and PPI."""
    make_tu(tmp_path, monkeypatch)
    make_tu(tmp_path, monkeypatch, "COX2", labels=35, graphs=30)
    make_ppi(tmp_path, monkeypatch)
    return tmp_path


def ready(data: TUGraphs | PPI | Chains | KarateClub) -> TUGraphs | PPI | Chains | KarateClub:
    data.prepare_data()
    data.setup()
    return data


def tu(root: Path, **arguments: object) -> TUGraphs:
    return ready(TUGraphs(str(root), **{"folds": 4, **arguments}))


def dense(graph: Data) -> Tensor:
    """Return A with A[s, t] the weight of the edge from s to t."""
    matrix = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=graph.edge_weight.dtype)
    return matrix.index_put(tuple(graph.edge_index), graph.edge_weight, accumulate=True)


# --- collections of graphs ---


def identity(graph: Data) -> tuple:
    return (graph.num_nodes, tuple(graph.x.argmax(dim=1).tolist()), int(graph.y))


def test_a_collection_is_read_as_it_is_written(root: Path) -> None:
    data = tu(root)
    assert (data.samples.features, data.samples.classes) == (3, 2)
    graphs = normalised(data._read())
    assert [graph.num_nodes for graph in graphs] == [1, *(2 + number % 4 for number in range(1, 24))]
    assert [int(graph.y) for graph in graphs] == [1 if number % 3 == 0 else 0 for number in range(24)]
    labels = torch.cat([graph.x for graph in graphs])  # without the attributes
    assert torch.equal(labels, torch.eye(3)[torch.arange(len(labels)) % 3])
    for number, graph in enumerate(graphs):
        nodes = graph.num_nodes
        path = torch.diag(torch.ones(nodes - 1), 1) if number < 23 else torch.zeros(nodes, nodes)
        loops = path + path.T + torch.eye(nodes)
        scale = loops.sum(dim=1).rsqrt()
        torch.testing.assert_close(dense(graph), scale[:, None] * loops * scale)


def places(root: Path, **arguments: object) -> list[list[int]]:
    """Return which graphs train, validate and test."""
    data = TUGraphs(str(root), **{"folds": 4, **arguments})
    data.prepare_data()
    labels = np.array([int(graph.y) for graph in data._read()])
    return [part.tolist() for part in data._split(labels)]


def test_the_folds_are_disjoint_stratified_and_cover_all(root: Path) -> None:
    splits = [places(root, fold=fold) for fold in range(4)]
    assert sorted(number for _, _, test in splits for number in test) == list(range(24))
    for train, val, test in splits:
        assert sorted([*train, *val, *test]) == list(range(24))
        assert len(test) == 6 and sum(number % 3 == 0 for number in test) == 2
        assert len(val) == 2 and sum(number % 3 == 0 for number in val) == 1
    _, val, _ = places(root, val_size=1 / 3)
    assert len(val) == 6 and sum(number % 3 == 0 for number in val) == 2
    assert places(root, val_size=6) == places(root, val_size=1 / 3) == places(root, val_fraction=1 / 3)


def test_the_smallest_share_is_a_graph_of_each_class(root: Path) -> None:
    assert [len(part) for part in places(root, val_size=1e-9)] == [16, 2, 6]
    assert [len(part) for part in places(root, val_size=1 - 1e-9)] == [2, 16, 6]


def test_the_seed_fixes_the_folds(root: Path) -> None:
    assert places(root, seed=3) == places(root, seed=3) != places(root, seed=4)


def test_validating_on_the_test_fold_uses_all_others_to_train(root: Path) -> None:
    train, val, test = places(root, validate_on_test=True)
    assert val == test == places(root)[2] and sorted([*train, *test]) == list(range(24))
    assert TUGraphs(validate_on_test=True).departures == ["the model is selected on the test graphs"]
    assert TUGraphs().departures == []


def test_edges_of_the_test_graphs_count_twice_where_wanted(root: Path) -> None:
    plain, double = tu(root), tu(root, double_test_edges=True)
    for name, factor in {"train_set": 1, "val_set": 1, "test_set": 2}.items():
        for before, graph in zip(getattr(plain, name), getattr(double, name), strict=True):
            loops = factor * (dense(before) > 0).float().fill_diagonal_(0) + torch.eye(graph.num_nodes)
            scale = loops.sum(dim=1).rsqrt()
            torch.testing.assert_close(dense(graph), scale[:, None] * loops * scale)
    assert double.departures == ["edges of the test graphs count twice"]
    both = tu(root, double_test_edges=True, validate_on_test=True)
    assert both.val_set is both.test_set and len(both.departures) == 2


def test_the_loaders_put_graphs_side_by_side(root: Path) -> None:
    data = tu(root, batch_size=7, eval_batch_size=4)
    assert [batch.num_graphs for batch in data.train_dataloader()] == [7, 7, 2]
    assert [batch.num_graphs for batch in data.test_dataloader()] == [4, 2]
    (batch,) = data.val_dataloader()
    places = [place for place, graph in enumerate(data.val_set) for _ in range(graph.num_nodes)]
    assert isinstance(batch, Batch) and batch.batch.tolist() == places
    torch.testing.assert_close(dense(batch), torch.block_diag(*(dense(graph) for graph in data.val_set)))


def test_the_order_depends_on_seed_and_epoch_alone(root: Path) -> None:
    loader = tu(root).train_dataloader()
    before = torch.get_rng_state()
    first = [identity(graph) for batch in loader for graph in batch.to_data_list()]
    assert torch.equal(torch.get_rng_state(), before)
    assert first == [identity(graph) for batch in tu(root).train_dataloader() for graph in batch.to_data_list()]
    loader.sampler.set_epoch(1)
    second = [identity(graph) for batch in loader for graph in batch.to_data_list()]
    assert first != second and sorted(first) == sorted(second)


class Recorder(BoringModel):
    """Writes down the graphs of every epoch and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.setdefault(self.current_epoch, []).extend(identity(graph) for graph in batch.to_data_list())
        return self.layer(torch.ones(1, 32)).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        del batch, batch_idx


def fit(folder: Path, data: TUGraphs, epochs: int, resume: str | None = None) -> dict[int, list]:
    model = Recorder()
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    callbacks = ModelCheckpoint(folder, filename="last")
    pl.Trainer(max_epochs=epochs, callbacks=callbacks, default_root_dir=folder, **quiet).fit(
        model, data, ckpt_path=resume
    )
    return model.seen


def test_a_resumed_run_sees_the_same_graphs(root: Path) -> None:
    whole = fit(root / "whole", TUGraphs(str(root), folds=4), 3)
    fit(root / "part", TUGraphs(str(root), folds=4), 1)
    rest = fit(root / "part", TUGraphs(str(root), folds=4), 3, resume=str(root / "part" / "last.ckpt"))
    assert rest == {epoch: whole[epoch] for epoch in (1, 2)} and whole[1] != whole[2]


def test_without_node_labels_there_is_a_constant(root: Path) -> None:
    (root / "PROTEINS/raw/PROTEINS_node_labels.txt").unlink()
    data = tu(root)
    assert data.samples.features == 1 and all(
        torch.equal(graph.x, torch.ones(len(graph.x), 1)) for graph in data.train_set
    )
    (root / "PROTEINS/raw/PROTEINS_node_attributes.txt").unlink()
    assert tu(root).samples.features == 1


def test_a_missing_collection(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DatasetNotFoundError) as error:
        TUGraphs(str(tmp_path / "nowhere"), "COX2").prepare_data()
    assert str(error.value) == (
        f"`COX2` was not found under `{tmp_path}/nowhere/` (expected `{tmp_path}/nowhere/COX2/raw/COX2_A.txt`). Set "
        "`download=True` to fetch it, or `root=PATH` to name the folder that holds it."
    )
    with pytest.raises(DatasetNotFoundError, match=r"`COX` was not found under .* There is COX2, PPI, PROTEINS\. Set"):
        TUGraphs(str(root), "COX").prepare_data()
    (root / "COX2/raw/COX2_graph_labels.txt").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"expected `.*COX2_graph_labels\.txt`"):
        TUGraphs(str(root), "COX2").setup()


def test_a_failed_download(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*arguments: object) -> None:
        raise OSError("HTTP Error 404: Not Found\nand more")

    monkeypatch.setattr("deq_lightning.data.graphs.base.download_url", download)
    with pytest.raises(DatasetNotFoundError, match=r"`NAME` could not be downloaded .*\(HTTP Error 404: Not Found\)"):
        TUGraphs(str(root), "NAME", download=True).prepare_data()


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("graph_labels", "2\n", "", "damaged or cut short"),
        ("graph_labels", "2\n", "a\n", "damaged or cut short"),
        ("node_labels", "0\n", "", "damaged or cut short"),
        ("A", "2, 3\n", "2, 300\n", "damaged or cut short|an edge to a node that it does not have"),
        ("A", "2, 3\n", "2, 9\n", "an edge to a node that it does not have"),
        ("graph_indicator", "1\n", "2\n", "graph 1 under `.*` has no nodes. Leave it out"),
    ],
)
def test_damaged_files(root: Path, file: str, old: str, new: str, message: str) -> None:
    rewrite(root / f"PROTEINS/raw/PROTEINS_{file}.txt", old, new)
    with pytest.raises(DataError, match=message):
        tu(root)


def test_too_few_graphs_of_a_class(root: Path) -> None:
    with pytest.raises(SplitError) as error:
        tu(root, folds=9)
    assert str(error.value) == "`folds` must be at most 8, the graphs of the rarest class of `PROTEINS`, got 9."


def test_a_class_must_train_and_validate(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three graphs of a class leave one outside of a fold, where both are wanted."""
    for graphs in (6, 8):
        make_tu(root, monkeypatch, f"T{graphs}", graphs=graphs)
        with pytest.raises(
            SplitError, match=rf"rarest class of `T{graphs}` has {graphs // 3 + graphs % 3 // 2} graphs"
        ):
            tu(root, name=f"T{graphs}", folds=2)
        data = tu(root, name=f"T{graphs}", folds=2, validate_on_test=True)
        assert len(data.train_set) + len(data.test_set) == graphs
    for fold in range(3):
        assert len(tu(root, name="T8", folds=3, fold=fold).val_set) == 2


@pytest.mark.parametrize(
    ("file", "line", "new", "message"),
    [
        (
            "node_labels",
            "0",
            "999999999",
            "the labels in `{}` must be consecutive classes, such as 0 to 3, got 0 to 999999999 for 4 different ones. "
            "Number them anew.",
        ),
        ("graph_indicator", "24", "999999999", "damaged or cut short (the files are not of the same nodes and graphs)"),
        ("graph_indicator", "1", "0", "damaged or cut short (the files are not of the same nodes and graphs)"),
        ("A", "2, 3", "2, 999999999", "damaged or cut short (there is an edge of a node that is in no graph)"),
    ],
)
def test_large_numbers_take_no_memory(root: Path, file: str, line: str, new: str, message: str) -> None:
    path = root / f"PROTEINS/raw/PROTEINS_{file}.txt"
    rewrite(path, f"{line}\n", f"{new}\n")
    with pytest.raises(DataError) as error:
        tu(root)
    assert message.format(path) in str(error.value)


def test_labels_of_graphs_may_be_any_numbers(root: Path) -> None:
    before = [int(graph.y) for graph in tu(root)._read()]
    path = root / "PROTEINS/raw/PROTEINS_graph_labels.txt"
    path.write_text(path.read_text().replace("2\n", "999999999\n"))
    data = tu(root)
    assert [int(graph.y) for graph in data._read()] == before and data.samples.classes == 2


def test_a_collection_without_edges(root: Path) -> None:
    """Of which only the loops are left."""
    (root / "PROTEINS/raw/PROTEINS_A.txt").write_text("")
    for graph in tu(root).train_set:
        assert torch.equal(dense(graph), torch.eye(graph.num_nodes)) and graph.num_nodes > 0


def test_a_last_line_without_an_end_counts(root: Path) -> None:
    before = tu(root)._read()
    for path in (root / "PROTEINS/raw").iterdir():
        path.write_text(path.read_text().rstrip("\n"))
    for graph, other in zip(before, tu(root)._read(), strict=True):
        assert all(torch.equal(graph[name], other[name]) for name in ("x", "edge_index", "y"))


def test_attributes_of_nodes_are_not_read(root: Path) -> None:
    before = tu(root).train_set
    (root / "PROTEINS/raw/PROTEINS_node_attributes.txt").write_text("nan\ninf\n")
    assert all(torch.equal(graph.x, other.x) for graph, other in zip(before, tu(root).train_set, strict=True))


def test_one_class_of_graphs_is_nothing_to_learn(root: Path) -> None:
    path = root / "PROTEINS/raw/PROTEINS_graph_labels.txt"
    path.write_text("1\n" * 24)
    with pytest.raises(DataError) as error:
        tu(root)
    assert str(error.value) == (
        f"the labels in `{path}` must be of two classes or more, got one for all graphs. Choose a collection to "
        "classify."
    )


def test_numbers_in_place_of_classes(root: Path) -> None:
    (root / "COX2/raw/COX2_graph_attributes.txt").write_text("0.5\n" * 30)
    with pytest.raises(DataError, match=r"must have classes, got numbers from `.*COX2_graph_attributes\.txt`\. Move"):
        tu(root, name="COX2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folds": 1}, "`folds` must be 2 or more, got 1."),
        ({"fold": 10}, r"`fold` must be in \[0, 9\], got 10."),
        ({"val_size": 1.0}, r"`val_size` must be in \(0, 1\), got 1.0."),
        ({"batch_size": 0}, "`batch_size` must be 1 or more, got 0."),
    ],
)
def test_bad_arguments_of_a_collection(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TUGraphs(**arguments)


# --- chains ---


def chains(**arguments: object) -> Data:
    return ready(Chains(**arguments)).train_set[0]


def test_the_chains_are_the_published_ones() -> None:
    graph = chains()
    assert graph.x.shape == (400, 100) and graph.y.tolist() == [0] * 200 + [1] * 200
    first = torch.arange(400) % 10 == 0
    expected = torch.zeros(400, 100)
    expected[torch.arange(400)[first], graph.y[first]] = 1
    assert torch.equal(graph.x, expected)
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    assert [int(one.sum()) for one in masks] == [20, 100, 200]
    assert torch.stack(masks).sum(dim=0).max() == 1
    # The published order of draws, on its own: the noise first, then the shuffle.
    draws = np.random.RandomState(42)
    draws.uniform(-0.0, 0.0, size=(2, 20, 10, 100))
    order = np.arange(400)
    draws.shuffle(order)
    found = [one.nonzero()[:, 0].tolist() for one in masks]
    assert found == [sorted(order[:20]), sorted(order[20:120]), sorted(order[120:320])]


def test_the_adjacency_of_the_chains_is_directed_and_normalised_by_rows() -> None:
    a = dense(chains())
    one = torch.diag(torch.full((10,), 0.5)) + torch.diag(torch.full((9,), 0.5), 1)
    one[9, 9], one[8, 9] = 1, 0.5**0.5
    torch.testing.assert_close(a, torch.block_diag(*[one] * 40))
    assert torch.linalg.eigvals(one).abs().max() == pytest.approx(1)


def test_other_chains() -> None:
    graph = chains(length=3, classes=4, chains_per_class=5, features=6, train_size=5, val_size=6, test_size=7)
    assert graph.x.shape == (60, 6) and graph.y.bincount().tolist() == [15] * 4
    assert graph.x.nonzero().tolist() == [[3 * number, number // 5] for number in range(20)]
    noisy = chains(noise=0.1)
    assert (noisy.x[1] != 0).all() and not torch.equal(noisy.x, chains(noise=0.1, seed=1).x)
    torch.testing.assert_close(noisy.x.sum(dim=1), torch.ones(400))
    single = chains(length=1, chains_per_class=200)
    torch.testing.assert_close(dense(single), torch.eye(400))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "`length` must be 1 or more, got 0."),
        ({"classes": 1}, "`classes` must be 2 or more, got 1."),
        ({"classes": 5, "features": 4}, "`features` must be 5 or more, got 4."),
        ({"noise": -1}, "`noise` must be 0 or more, got -1."),
        ({"noise": float("inf")}, "`noise` must be finite, got inf."),
        ({"train_size": 0}, "`train_size` must be 1 or more, got 0."),
    ],
)
def test_bad_arguments_of_the_chains(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chains(**arguments)


def test_shares_of_the_nodes() -> None:
    shares, counts = chains(train_size=0.05, val_size=0.25, test_size=0.5), chains()
    assert torch.equal(shares.train_mask, counts.train_mask) and torch.equal(shares.test_mask, counts.test_mask)


def test_too_few_nodes() -> None:
    with pytest.raises(SplitError, match=r"must be at most 80, the number of nodes, got 20 \+ 100 \+ 200\."):
        chains(length=2)


# --- the karate club ---


def test_the_karate_club() -> None:
    data = ready(KarateClub())
    (graph,) = data.test_set
    assert (data.samples.features, data.samples.classes) == (34, 4)
    masks = torch.stack([graph.train_mask, graph.val_mask, graph.test_mask])
    assert masks.sum(dim=1).tolist() == [4, 10, 20] and (masks.sum(dim=0) == 1).all()
    a = dense(graph)
    torch.testing.assert_close(a, a.T)
    assert torch.linalg.eigvalsh(a).max() == pytest.approx(1)
    assert torch.equal(graph.val_mask, ready(KarateClub()).test_set[0].val_mask)
    assert not torch.equal(graph.val_mask, ready(KarateClub(seed=1)).test_set[0].val_mask)
    assert [batch.num_nodes for batch in data.train_dataloader()] == [34]
    with pytest.raises(ValueError, match=r"`val_size` must be in \[1, 29\], got 30\."):
        KarateClub(val_size=30)
    assert torch.equal(graph.val_mask, ready(KarateClub(val_size=1 / 3)).test_set[0].val_mask)


# --- PPI ---


def test_ppi_is_read_from_the_files(root: Path) -> None:
    data = ready(PPI(str(root / "PPI"), normalization="none"))
    assert [len(one) for one in (data.train_set, data.val_set, data.test_set)] == [3, 2, 2]
    assert (data.samples.features, data.samples.classes) == (50, 121)
    for number, graph in enumerate(data.train_set):
        ring = torch.zeros(5 + number, 5 + number)
        for i in range(4 + number):
            ring[i, (i + 1) % (4 + number)] = ring[(i + 1) % (4 + number), i] = 1
        assert torch.equal(dense(graph), ring)  # the last node is isolated
    features = np.load(root / "PPI/raw/train_feats.npy")
    np.testing.assert_allclose(torch.cat([graph.x for graph in data.train_set]), features, rtol=1e-6)
    assert [batch.num_graphs for batch in data.train_dataloader()] == [1] * 3
    assert [batch.num_graphs for batch in data.val_dataloader()] == [2]


def write_ppi(folder: Path, split: str, graph_ids: list[int], links: list[tuple[int, int]], directed: bool) -> None:
    nodes = [{"id": number} for number in range(len(graph_ids))]
    content = {"directed": directed, "multigraph": False, "graph": {}, "nodes": nodes}
    content["links"] = [{"source": source, "target": target} for source, target in links]
    (folder / f"{split}_graph.json").write_text(json.dumps(content))
    np.save(folder / f"{split}_graph_id.npy", graph_ids)
    np.save(folder / f"{split}_feats.npy", np.arange(50.0 * len(graph_ids)).reshape(-1, 50))
    np.save(folder / f"{split}_labels.npy", np.arange(121 * len(graph_ids)).reshape(-1, 121) % 2)


@pytest.mark.parametrize("directed", [False, True])
def test_ppi_with_isolated_nodes_loops_and_no_edges(root: Path, directed: bool) -> None:
    """The second graph's first node is isolated, the third has no edges at all."""
    links = [(0, 1), (1, 1), (3, 4), (4, 5), (3, 4)]
    write_ppi(root / "PPI/raw", "train", [7, 7, 8, 8, 8, 8, 9], links, directed)
    first, second, third = ready(PPI(str(root / "PPI"), normalization="none")).train_set
    expected = torch.zeros(4, 4)
    expected[1, 2] = expected[2, 3] = 1
    torch.testing.assert_close(dense(second), expected if directed else expected + expected.T)
    assert dense(first).tolist() == [[0, 1], [0 if directed else 1, 0]]
    assert (third.num_nodes, third.num_edges) == (1, 0)
    assert second.x[:, 0].tolist() == [100, 150, 200, 250]


def test_the_perron_eigenvalue_of_all_ppi_graphs(root: Path) -> None:
    """Rings have one of 2."""
    assert ready(PPI(str(root / "PPI"), normalization="none")).samples.perron == pytest.approx(2, abs=1e-6)
    assert ready(PPI(str(root / "PPI"))).samples.perron == 1


@pytest.mark.parametrize("normalization", ["perron", "gcn"])
def test_ppi_is_normalised_to_a_perron_eigenvalue_of_one(root: Path, normalization: str) -> None:
    for graph in ready(PPI(str(root / "PPI"), normalization=normalization)).train_set:
        assert torch.linalg.eigvalsh(dense(graph)).max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_on_the_perron_eigenvalue(seed: int) -> None:
    """On random directed graphs, which may fall apart and have nodes that nothing reaches."""
    g = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(900, generator=g)[: 30 + 60 * seed]
    edge_index = torch.stack([pairs // 30, pairs % 30])
    a = torch.zeros(30, 30, dtype=torch.float64).index_put(tuple(edge_index), torch.ones(1).double())
    exact = torch.linalg.eigvals(a).abs().max().item()
    assert exact - 1e-9 <= perron_bound(edge_index, 30) <= exact + 0.1
    assert perron_bound(torch.zeros(2, 0, dtype=torch.long), 5) == 0


def test_missing_and_damaged_ppi(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"`PPI` was not found under .*expected `.*raw/train_feats\.npy`"):
        PPI(str(tmp_path / "nowhere")).prepare_data()
    labels = (root / "PPI/raw/test_labels.npy").read_bytes()
    for damage in (b"cut", labels[:-9], b""):
        (root / "PPI/raw/test_labels.npy").write_bytes(damage)
        with pytest.raises(
            DatasetNotFoundError, match=r"the files of `test` under .* damaged, cut short or not of the"
        ):
            PPI(str(root / "PPI")).setup("fit")
    (root / "PPI/raw/test_labels.npy").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"expected `.*raw/test_labels\.npy`"):
        PPI(str(root / "PPI")).prepare_data()


def test_ppi_labels_outside_the_range(root: Path) -> None:
    path = root / "PPI/raw/valid_labels.npy"
    np.save(path, np.load(path) * 2)
    with pytest.raises(DataError, match=r"must be 0 or 1, got 0\.0 to 2\.0"):
        ready(PPI(str(root / "PPI")))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(root: Path, value: float) -> None:
    path = root / "PPI/raw/valid_feats.npy"
    features = np.load(path)
    features[-1, 7] = value  # the last node of the second graph
    np.save(path, features)
    with pytest.raises(DataError) as error:
        PPI(str(root / "PPI")).setup("fit")
    assert str(error.value) == (
        f"the features of a graph must be finite, got {value} in graph 2 of `{path}`. Repair them, or leave that graph "
        "out."
    )


def test_graph_numbers_of_ppi_that_are_not_consecutive(root: Path) -> None:
    path = root / "PPI/raw/train_graph_id.npy"
    numbers = np.load(path)
    numbers[-1] = 999_999_999
    np.save(path, numbers)
    with pytest.raises(DataError) as error:
        PPI(str(root / "PPI")).setup()
    assert str(error.value) == (
        f"the graphs in `{path}` must have consecutive numbers, got 1 to 999999999 for 18 nodes. Number them anew."
    )


def test_labels_of_ppi_that_are_all_the_same(root: Path) -> None:
    path = root / "PPI/raw/train_labels.npy"
    np.save(path, np.zeros_like(np.load(path)))
    with pytest.raises(DataError) as error:
        PPI(str(root / "PPI")).setup()
    assert str(error.value) == f"the labels in `{path}` must be 0 and 1, got 0.0 for all: nothing to learn."


# --- graphs of one's own ---


class Own(GraphDataModule):
    """Two graphs, the second of them given."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.second = Data(x=x, edge_index=torch.zeros(2, 0, dtype=torch.long), y=y)

    def setup(self, stage: str | None = None) -> None:
        first = Data(x=torch.ones(2, 3), edge_index=torch.zeros(2, 0, dtype=torch.long), y=torch.tensor([0, 1]))
        self.train_set = self.val_set = self.test_set = [first, self.second]
        self.describe(NODES, first, classes=2)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.tensor([[0, torch.nan, 0]]), [0], "the features of a graph must be finite, got nan in graph 2 of `Own."),
        (torch.ones(1, 3), [999_999_999], "labels must be consecutive classes, 0 to 1, got 999999999 in graph 2 of `O"),
    ],
)
def test_graphs_of_ones_own_that_cannot_be_used(x: Tensor, y: list[int], message: str) -> None:
    data = Own(x, torch.tensor(y))
    data.setup()
    for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader):
        with pytest.raises(DataError, match=message):
            loader()


def test_bad_arguments_of_ppi() -> None:
    with pytest.raises(ValueError, match="`normalization` must be one of perron, gcn, none; got 'rows'"):
        PPI(normalization="rows")
