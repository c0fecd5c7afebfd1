"""Graphs as the implicit layers see them: node features, and an adjacency to multiply with."""

import warnings
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from deq_lightning.models.layers.differentiation import differentiated
from deq_lightning.precision import full_precision


class Adjacency:
    """The weighted edges of a graph as a matrix: row t of `adjacency @ x` sums weight · x[s] over the edges s → t.

    So messages flow from source to target as everywhere in PyTorch Geometric, and with A[s, t] the weight of s → t this
    is Aᵀ x, the transpose of the product X A that papers write with features as rows.

    Args:
        edge_index: (2, edges) sources and targets.
        edge_weight: (edges,) in single or double precision; edges that occur twice add up.
        nodes: number of nodes.
    """

    def __init__(self, edge_index: Tensor, edge_weight: Tensor, nodes: int) -> None:
        self.edge_index = edge_index
        self.edge_weight = edge_weight
        self.nodes = nodes
        self.perron: float | None = None  # a bound on the Perron-Frobenius eigenvalue, once it has been looked for

    @cached_property
    def matrix(self) -> Tensor:
        """(nodes, nodes) in compressed rows, [target, source]."""
        return compressed(self.edge_index.flip(0), self.edge_weight, self.nodes)

    @cached_property
    def transposed(self) -> "Adjacency":
        """The same edges turned round."""
        turned = Adjacency(self.edge_index.flip(0), self.edge_weight, self.nodes)
        turned.__dict__["transposed"] = self
        return turned

    def __matmul__(self, x: Tensor) -> Tensor:
        """Multiply with (nodes, width) features, differentiably in these; half precision is widened."""
        return self.add_product(None, x)

    def add_product(self, bias: Tensor | None, x: Tensor) -> Tensor:
        """Return `bias` + `self @ x`, with a (nodes, width) bias, in one pass over the memory."""
        dtype = self.edge_weight.dtype
        bias, x = None if bias is None else bias.to(dtype), x.to(dtype)
        if without_values(x):
            return _add_product(bias, x, self)
        if differentiated():
            return _AddProduct.apply(bias, x, self)
        return _add_product(bias, x, self)  # on small graphs PyTorch's binding of a Function's arguments takes longer


def compressed(indices: Tensor, values: Tensor, size: int) -> Tensor:
    """Return a square sparse matrix in compressed rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks are)")
        return torch.sparse_coo_tensor(indices, values, (size, size)).coalesce().to_sparse_csr()


def _add_product(bias: Tensor | None, x: Tensor, adjacency: Adjacency) -> Tensor:
    with full_precision(x.device.type):
        if without_values(x):
            return _by_messages(bias, x, adjacency)
        return adjacency.matrix @ x if bias is None else torch.addmm(bias, adjacency.matrix, x)


def without_values(x: Tensor) -> bool:
    """Say whether what is computed cannot depend on values, such as the number of entries of a sparse matrix."""
    return x.is_meta or torch.compiler.is_exporting()


def _by_messages(bias: Tensor | None, x: Tensor, adjacency: Adjacency) -> Tensor:
    """Return the same by gathering and adding up messages, which is slower and needs no sparse matrix."""
    source, target = adjacency.edge_index
    total = torch.zeros_like(x) if bias is None else bias
    return total.index_add(0, target, adjacency.edge_weight[:, None] * x[source])


class _AddProduct(torch.autograd.Function):
    """The product with a constant sparse matrix, added to a bias; being linear, it is its own derivative in every mode.

    PyTorch's sparse products have no forward mode, which `NormalCG` and the spectral radius need, and no half precision
    on CPUs. Gathering and adding up messages has both, and is 10 to 40 times slower there (torch 2.15, 20,000 edges and
    width 64, 68,000 and 512). The transposed matrix is built once and not in every backward.
    """

    forward = staticmethod(_add_product)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor | None, Tensor, Adjacency], output: Tensor) -> None:
        del output
        ctx.adjacency = inputs[2]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        bias, x, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        return g if bias else None, ctx.adjacency.transposed @ g if x else None, None  # type: ignore[attr-defined]

    @staticmethod
    def jvp(ctx: FunctionCtx, bias_tangent: Tensor | None, tangent: Tensor, _: None) -> Tensor:
        return ctx.adjacency.add_product(bias_tangent, tangent)  # type: ignore[attr-defined]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None, None], bias: Tensor | None, x: Tensor, adjacency: Adjacency
    ) -> tuple[Tensor, int]:
        """Multiply with all at once, side by side."""

        def beside(part: Tensor, dim: int | None) -> Tensor:
            whole = part[:, None].expand(-1, info.batch_size, -1) if dim is None else part.movedim(dim, 1)
            return whole.flatten(1)

        product = adjacency.add_product(None if bias is None else beside(bias, in_dims[0]), beside(x, in_dims[1]))
        return product.unflatten(1, (info.batch_size, -1)), 1


class GraphBatch(NamedTuple):
    """Graphs side by side as one, whose adjacency is block-diagonal."""

    features: Tensor  # (nodes, features)
    adjacency: Adjacency
    graph: Tensor  # (nodes,) the place in the batch of each node's graph
    num_graphs: int


def graph_batch(data: Any, dtype: torch.dtype | None = None) -> GraphBatch:
    """Read a `Data` or `Batch` of PyTorch Geometric: `x`, `edge_index`, and where given `edge_weight` and `batch`.

    Edges without a weight have weight 1. Features are cast to `dtype` where one is given: Lightning casts the tensors
    of a batch for a model in another precision, but does not look into these objects.
    """
    x, weight, graph = data.x if dtype is None else data.x.to(dtype), data.edge_weight, data.batch
    weight = x.new_ones(data.edge_index.shape[1]) if weight is None else weight
    weight = weight.to(torch.promote_types(x.dtype, torch.float32))  # CPUs have no sparse product in half precision
    num_graphs = 1 if graph is None else data.num_graphs
    graph = data.edge_index.new_zeros(x.shape[0]) if graph is None else graph
    return GraphBatch(x, Adjacency(data.edge_index, weight, x.shape[0]), graph, num_graphs)
