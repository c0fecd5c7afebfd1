"""The Perron-Frobenius eigenvalue of an adjacency, which decides whether an implicit graph network has an answer."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-3  # a normalised adjacency has a Perron-Frobenius eigenvalue of 1, up to rounding
CLOSE = 1e-6  # relative distance of bounds that are as good as the eigenvalue
SMALL = 100  # nodes up to which all eigenvalues take about a millisecond


def perron_bound(edge_index: Tensor, nodes: int, steps: int = 100) -> float:
    """Return a close upper bound on the Perron-Frobenius eigenvalue of an adjacency without weights.

    By Collatz and Wielandt: max (A x)ᵢ / xᵢ is such a bound for every positive x, and falls to the eigenvalue as x
    follows the power iteration.
    """
    source, target = edge_index
    x, bound = torch.ones(nodes, dtype=torch.float64), float("inf")
    for _ in range(steps):
        image = x.index_add(0, target, x[source])  # (I + A) x: iterating I + A does not alternate
        bound = min(bound, (image / x).max().item() - 1)
        x = (image / image.max()).clamp_min(1e-30)
    return bound


def quick_bounds(edge_index: Tensor, weight: Tensor, graph: Tensor, num_graphs: int) -> Tensor:
    """Return (graphs,) upper bounds on the eigenvalue of every |A| in a batch, in two products.

    By Collatz and Wielandt for |A| and its transpose, with x = 1, and with x = |A|ᵢᵢ^(-1/2): where A is normalised by
    the degrees with a loop at every node, that is its Perron vector, so that one of the bounds is the eigenvalue.

    Args:
        edge_index: (2, edges) sources and targets.
        weight: (edges,) of the edges.
        graph: (nodes,) the place in the batch of each node's graph.
        num_graphs: graphs in the batch.
    """
    source, target = edge_index
    weight = weight.abs()
    loops = weight.new_zeros(len(graph)).index_add(0, target, weight * (source == target))
    x = torch.stack([torch.ones_like(loops), torch.where(loops > 0, loops.rsqrt(), 1.0)], dim=1)
    images = [
        torch.zeros_like(x).index_add(0, end, weight[:, None] * x[start])
        for start, end in ((source, target), (target, source))
    ]
    ratios = torch.cat([image / x for image in images], dim=1)
    bounds = ratios.new_zeros(num_graphs, 4).scatter_reduce(0, graph[:, None].expand(-1, 4), ratios, "amax")
    return bounds.amin(dim=1)


def perron_eigenvalue(edge_index: Tensor, weight: Tensor, nodes: int) -> float:
    """Return the eigenvalue of |A|, or a bound above it where no iteration settles; NaN if a weight is not finite.

    Args:
        edge_index: (2, edges) sources and targets.
        weight: (edges,) of the edges.
        nodes: number of nodes.
    """
    # SciPy takes long to import, and most runs never come here.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    (source, target), values = edge_index.cpu().numpy(), weight.detach().double().cpu().numpy()
    if not np.isfinite(values).all():
        return float("nan")
    whole = abs(coo_array((values, (target, source)), shape=(nodes, nodes)).tocsr()).tocoo()
    # Edges between strong components change no eigenvalue; without them rounding does not either.
    _, part = connected_components(whole, connection="strong")
    matrix = coo_array((whole.data * (part[whole.row] == part[whole.col]), whole.coords), whole.shape).tocsr()
    if nodes <= SMALL:
        return float(np.abs(np.linalg.eigvals(matrix.toarray())).max())
    low, high = _enclosed(matrix, part)
    return high if high <= low * (1 + CLOSE) else min(high, _by_krylov(matrix))


def _enclosed(matrix: Any, part: np.ndarray, steps: int = 200) -> tuple[float, float]:
    """Return bounds by Collatz and Wielandt, of which the lower one holds in every strong component by itself."""
    x, low, high = np.ones(len(part)), 0.0, float("inf")
    shift = max(matrix.sum() / len(part), 1e-300)  # iterating A + shift · I does not alternate
    for _ in range(steps):
        image = matrix @ x
        ratio = image / x
        smallest = np.full(part.max() + 1, np.inf)
        np.minimum.at(smallest, part, ratio)
        low, high = max(low, float(smallest.max())), min(high, float(ratio.max()))
        if high <= low * (1 + CLOSE):
            break
        x = image + shift * x
        x = np.maximum(x / x.max(), 1e-30)
    return low, high


def _by_krylov(matrix: Any) -> float:
    """Return the eigenvalue, or infinity if it is not found."""
    from scipy.sparse.linalg import ArpackNoConvergence, eigs

    start = np.ones(matrix.shape[0])  # a random one would be another in every run
    try:
        return float(eigs(matrix, 1, which="LR", v0=start, tol=CLOSE, return_eigenvectors=False)[0].real)
    except ArpackNoConvergence:
        return float("inf")
