"""Edge weights of saved graphs, so that implicit layers have an answer."""

from typing import Literal

from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_remaining_self_loops

from deq_lightning.data.errors import DataError
from deq_lightning.data.graphs.saved import Saved
from deq_lightning.perron import perron_eigenvalue

Normalization = Literal["gcn", "perron", "none"]


def normalise(saved: Saved, normalization: Normalization) -> float:
    """Normalise the edge weights of a graph in place, and return a bound on the Perron-Frobenius eigenvalue of |A|.

    Args:
        saved: the graph.
        normalization: as in `Graphs`; loops that `gcn` adds have edge features of 0.

    Raises:
        DataError: if a weight is negative, where degrees normalise.
    """
    graph = saved.graph
    if normalization == "gcn":
        _by_degrees(saved)
        return 1.0
    bound = perron_eigenvalue(graph.edge_index, graph.edge_weight, graph.num_nodes)
    if normalization == "none" or bound == 0:
        return bound
    graph.edge_weight = (graph.edge_weight.double() / bound).float()
    return 1.0


def _by_degrees(saved: Saved) -> None:
    name, graph = saved
    edges, weights, nodes = graph.edge_index, graph.edge_weight, graph.num_nodes
    if (weights < 0).any():
        raise DataError(
            f"`edge_weight` of `{name}` must be 0 or more to be normalised by degrees, got {weights.min()}. Set "
            "`normalization=perron`."
        )
    if graph.edge_attr is not None:
        _, graph.edge_attr = add_remaining_self_loops(edges, graph.edge_attr, 0.0, nodes)
    graph.edge_index, graph.edge_weight = gcn_norm(edges, weights, nodes)
