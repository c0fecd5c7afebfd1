"""Graphs on which a network need not have an equilibrium are refused, and all others are not."""

import math

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import GCNNorm

from deq_lightning import IGNNNodeClassifier, ImplicitGraphLayer
from deq_lightning.configured import CombinationError
from deq_lightning.models.graphs import well_posed
from deq_lightning.models.graphs.adjacency import graph_batch
from deq_lightning.perron import perron_eigenvalue, quick_bounds

STAR = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 0, 0, 0, 0]])  # eigenvalue 2
NET = {"in_features": 2, "num_classes": 2, "widths": [4]}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(well_posed, "_eigenvalues", {})


def graph(edge_index: Tensor, weight: float | Tensor | None = None, nodes: int | None = None) -> Data:
    nodes = int(edge_index.max()) + 1 if nodes is None else nodes
    data = Data(x=torch.ones(nodes, 2), edge_index=edge_index)
    if weight is not None:
        data.edge_weight = torch.as_tensor(weight, dtype=torch.float32).expand(edge_index.shape[1]).clone()
    return data


def dense(data: Data) -> Tensor:
    matrix = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.float64)
    return matrix.index_put(tuple(data.edge_index), data.edge_weight.double(), accumulate=True)


def drawn(seed: int, nodes: int = 30, edges: int = 90) -> Data:
    """Return a directed graph that may fall apart, with weights of both signs."""
    g = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(nodes**2, generator=g)[:edges]
    return graph(torch.stack([pairs // nodes, pairs % nodes]), torch.randn(edges, generator=g), nodes)


def cycle(nodes: int, weights: Tensor) -> Data:
    """Return a directed cycle, whose eigenvalue is the geometric mean of its weights."""
    return graph(torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes]), weights)


def test_a_graph_without_weights_is_refused() -> None:
    message = (
        "the Perron-Frobenius eigenvalue of the adjacency must be at most 1, the `perron` of the network, got a graph "
        "with 2. Normalise the edge weights with `torch_geometric.transforms.GCNNorm()`, or set `net.perron=2`."
    )
    for training in (True, False):
        with pytest.raises(CombinationError) as error:
            IGNNNodeClassifier(**NET).train(training)(graph(STAR))
        assert str(error.value) == message
    with pytest.raises(CombinationError):
        ImplicitGraphLayer(2, 4)(graph_batch(graph(STAR)))
    assert IGNNNodeClassifier(**NET, perron=2.0)(graph(STAR))[0].shape == (5, 2)
    assert IGNNNodeClassifier(**NET)(GCNNorm()(graph(STAR)))[0].shape == (5, 2)


@pytest.mark.parametrize(("weight", "refused"), [(0.5, False), (-0.5, False), (0.5004, False), (0.502, True)])
def test_the_limit_is_that_of_the_largest_eigenvalue_up_to_rounding(weight: float, refused: bool) -> None:
    """Here every row but the hub's adds up to less."""
    graphs = [graph(STAR, 0.1), graph(STAR, weight), graph(STAR, 0.5), graph(STAR, 0.5 + 0.5 * (abs(weight) - 0.5))]
    net = IGNNNodeClassifier(**NET)
    if refused:
        with pytest.raises(CombinationError, match=r"with 1\.004\. .* or set `net\.perron=1\.004\d?`\."):
            net(Batch.from_data_list(graphs))
    else:
        assert net(Batch.from_data_list(graphs))[0].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    weight = torch.full((8,), 0.1)
    weight[3] = value
    with pytest.raises(CombinationError, match=r"^the edge weights of a graph must be finite, got NaN or infinity"):
        IGNNNodeClassifier(**NET)(graph(STAR, weight))


@pytest.mark.parametrize("seed", range(5))
def test_the_eigenvalue_and_its_bounds_are_those_of_dense_algebra(seed: int) -> None:
    graphs = [drawn(seed), drawn(seed + 5, 150, 600), GCNNorm()(drawn(seed + 9, 120, 300))]
    graphs[-1].edge_weight = graphs[-1].edge_weight.nan_to_num(0)  # of nodes with negative degrees
    batch = graph_batch(Batch.from_data_list(graphs))
    bounds = quick_bounds(batch.adjacency.edge_index, batch.adjacency.edge_weight, batch.graph, 3).tolist()
    for one, bound in zip(graphs, bounds, strict=True):
        exact = torch.linalg.eigvals(dense(one).abs()).abs().max().item()
        found = perron_eigenvalue(one.edge_index, one.edge_weight, one.num_nodes)
        assert found == pytest.approx(exact, rel=1e-5) and bound >= exact * (1 - 1e-6)


def test_chains_without_a_cycle_have_no_eigenvalue_at_all() -> None:
    """Though rounding gives a Jordan block one: the heavy edges of a path never come back."""
    for nodes in (50, 400):
        path = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])
        assert perron_eigenvalue(path, torch.full((nodes - 1,), 5.0), nodes) == 0
        assert IGNNNodeClassifier(**NET)(graph(path, 5.0))[0].shape == (nodes, 2)


@pytest.mark.parametrize("nodes", [4, 200])
def test_uneven_weights_that_cancel_along_a_cycle(nodes: int) -> None:
    data = cycle(nodes, torch.tensor([4.0, 0.25]).repeat(nodes // 2))
    assert perron_eigenvalue(data.edge_index, data.edge_weight, nodes) == pytest.approx(1, rel=1e-4)
    assert IGNNNodeClassifier(**NET)(data)[0].isfinite().all()


def test_normalisations_by_degrees_are_settled_by_the_bounds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of loops that count once, as usual, or half as much as the edges, and of rows and columns."""
    monkeypatch.setattr(well_posed, "perron_eigenvalue", None)
    tree = torch.stack([torch.arange(39).div(3, rounding_mode="floor"), torch.arange(1, 40)])
    both = torch.cat([tree, tree.flip(0)], dim=1)
    degrees = both[0].bincount().float()
    for data in (
        GCNNorm()(graph(both)),
        GCNNorm()(graph(both, 2.0)),
        GCNNorm()(graph(tree)),
        GCNNorm()(graph(tree.flip(0))),
        graph(both, 1 / degrees[both[0]]),
        graph(both, 1 / degrees[both[1]]),
    ):
        assert IGNNNodeClassifier(**NET)(data)[0].isfinite().all()


def test_the_eigenvalue_of_a_graph_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the graph is in a batch, and again if one of its weights changes."""
    seen = []

    def counted(edge_index: Tensor, weight: Tensor, nodes: int) -> float:
        seen.append(nodes)
        return perron_eigenvalue(edge_index, weight, nodes)

    monkeypatch.setattr(well_posed, "perron_eigenvalue", counted)
    small, large = graph(STAR, 0.45), graph(torch.cat([STAR, STAR + 5], dim=1), 0.45)
    net = IGNNNodeClassifier(2, 2, [4, 4])
    for graphs in ([small, large], [large, small, small], [small]):
        net(Batch.from_data_list(graphs))
    assert seen == [5, 10]
    changed = graph(STAR, torch.full((8,), 0.45).index_fill(0, torch.tensor([2]), 0.46))
    other = graph(STAR[:, [1, 0, 3, 2, 5, 4, 7, 6]], 0.45)  # the same edges in another order
    net(Batch.from_data_list([other, changed]))
    assert seen == [5, 10, 5]


@pytest.mark.parametrize("shape", ["path", "cycle"])
def test_long_thin_graphs_normalised_without_loops_are_told_apart(shape: str) -> None:
    """Their iterations settle slowly: D^(-1/2) A D^(-1/2) has an eigenvalue of 1, which no sum of a row shows."""
    nodes = 300
    line = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])
    leaves = torch.tensor([[0, 7, 7, 150], [298, 299, 290, 20]]) if shape == "cycle" else torch.zeros(2, 0).long()
    both = torch.cat([line, leaves], dim=1)
    both = torch.cat([both, both.flip(0)], dim=1)
    degrees = both[0].bincount(minlength=nodes).float()
    weight = (degrees[both[0]] * degrees[both[1]]).rsqrt()
    assert perron_eigenvalue(both, weight, nodes) == pytest.approx(1, rel=1e-5)
    assert IGNNNodeClassifier(**NET)(graph(both, weight))[0].isfinite().all()
    with pytest.raises(CombinationError, match=r"with 1\.00[45]"):
        IGNNNodeClassifier(**NET)(graph(both, weight * 1.0045))
