"""Refuses graphs on which an implicit graph network need not have an equilibrium."""

import math

import torch
from torch import Tensor

from deq_lightning.configured import CombinationError
from deq_lightning.models.graphs.adjacency import GraphBatch, without_values
from deq_lightning.perron import ROUNDING, perron_eigenvalue, quick_bounds

KEPT = 1_000_000
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of a number, by its bytes
_eigenvalues: dict[int, float] = {}  # of graphs that the quick bounds leave open, by their fingerprints


def check_perron(batch: GraphBatch, perron: float) -> None:
    """Raise a CombinationError unless the Perron-Frobenius eigenvalue of every |A| is at most `perron`.

    The eigenvalue itself is worked out only where quick bounds do not settle it, and then once for each graph.
    """
    adjacency, limit = batch.adjacency, perron * (1 + ROUNDING)
    if without_values(batch.features) or (adjacency.perron is not None and adjacency.perron <= limit):
        return  # no edge weights to look at, or as the layers before have seen
    with torch.no_grad():
        found = quick_bounds(adjacency.edge_index, adjacency.edge_weight, batch.graph, batch.num_graphs).tolist()
        if not all(bound <= limit for bound in found):
            keys = fingerprints(batch).tolist()
            for number, bound in enumerate(found):
                if not bound <= limit:
                    found[number] = min(bound, _eigenvalue(batch, number, keys[number]))
    largest = max(found, default=0.0)
    if largest > limit:
        raise _refusal(largest, perron)
    adjacency.perron = largest


def fingerprints(batch: GraphBatch) -> Tensor:
    """Return (graphs,) a hash of the weighted edges of each graph, whatever its place in the batch."""
    edge_index, weight = batch.adjacency.edge_index, batch.adjacency.edge_weight
    nodes = torch.arange(len(batch.graph), device=edge_index.device)
    first = nodes.new_zeros(batch.num_graphs).scatter_reduce(0, batch.graph, nodes, "amin", include_self=False)
    graph = batch.graph[edge_index[0]]
    source, target = edge_index - first[graph]
    mixed = weight.view(BITS[weight.element_size()]).long()
    for part in (source, target):  # 64-bit products wrap round, as hashes want it
        mixed = (mixed ^ (mixed >> 29) ^ part) * -7046029254386353131
    return torch.zeros_like(first).index_add(0, graph, mixed ^ (mixed >> 32))


def _eigenvalue(batch: GraphBatch, number: int, key: int) -> float:
    if key not in _eigenvalues:
        if len(_eigenvalues) >= KEPT:
            _eigenvalues.clear()
        adjacency, nodes = batch.adjacency, (batch.graph == number).nonzero()[:, 0]
        edges = batch.graph[adjacency.edge_index[0]] == number
        edge_index = adjacency.edge_index[:, edges] - nodes[0]
        _eigenvalues[key] = perron_eigenvalue(edge_index, adjacency.edge_weight[edges], len(nodes))
    if math.isnan(_eigenvalues[key]):
        raise CombinationError("the edge weights of a graph must be finite, got NaN or infinity. Leave that graph out.")
    return _eigenvalues[key]


def _refusal(found: float, perron: float) -> CombinationError:
    needed = f"{math.ceil(found * 1e4) / 1e4:.10g}"
    return CombinationError(
        f"the Perron-Frobenius eigenvalue of the adjacency must be at most {perron:.7g}, the `perron` of the network, "
        f"got a graph with {found:.7g}. Normalise the edge weights with `torch_geometric.transforms.GCNNorm()`, or set "
        f"`net.perron={needed}`."
    )
