"""Whether an equilibrium depends on where its solve starts."""

from typing import Literal, get_args

import torch
from torch import Tensor

from deq_lightning.configured import one_of, whole
from deq_lightning.solvers import FixedPointMap, Partition, Solver
from deq_lightning.state import State, pack, parts, unpack

Starts = Literal["permuted", "noise"]


@torch.no_grad()
def path_independence(
    f: FixedPointMap, z0: State, solver: Solver, starts: Starts = "permuted", repeats: int = 1
) -> Tensor:
    """Return the cosine between the fixed points found from `z0` and from another start, the asymptotic alignment.

    1 says that a fixed point depends on the input alone. Of models that solve harder inputs with more steps, those with
    a high score gain most from them.

    Args:
        f: the map.
        z0: the usual start.
        solver: solves from both starts, with the same budget.
        starts: the other start: the fixed point of another sample of the batch, `permuted`, or N(0, 1), `noise`.
        repeats: other starts to average over, 1 or more.

    Returns:
        (batch,) cosines in [−1, 1]; for a map with a partition, one for each of its samples.

    Raises:
        ValueError: if an argument is out of its range, or fixed points are to be exchanged and there is one sample, or
            samples of several sizes.

    References:
        Anil et al., "Path independent equilibrium models can better exploit test-time computation", NeurIPS 2022,
        arXiv:2211.09961, algorithm 1.
    """
    one_of(get_args(Starts), starts=starts)
    whole(1, repeats=repeats)
    partition = getattr(f, "partition", None)
    if starts == "permuted" and (partition is not None or parts(z0)[0].shape[0] < 2):
        raise ValueError("`starts` of `permuted` exchanges the fixed points of two samples or more. Use `noise`.")
    first = pack(solver.solve(f, z0).z)
    cosines = []
    for shift in range(1, repeats + 1):
        other = torch.randn_like(first) if starts == "noise" else first.roll(shift % len(first) or 1, 0)
        second = pack(solver.solve(f, unpack(other, z0)).z)
        cosines.append(_cosines(first, second, partition))
    return torch.stack(cosines).mean(dim=0)


def _cosines(one: Tensor, other: Tensor, partition: Partition | None) -> Tensor:
    """Return the cosine of every sample's two states."""
    products = [one * other, one.square(), other.square()]
    if partition is None:
        both, first, second = (product.sum(dim=1) for product in products)
    else:
        index, count = partition.index, partition.count
        rows = (product.view(len(index), -1).sum(dim=1) for product in products)
        both, first, second = (row.new_zeros(count).index_add_(0, index, row) for row in rows)
    return both / (first.sqrt() * second.sqrt()).clamp_min(torch.finfo(both.dtype).tiny)
