"""How the residual falls along a solve."""

import torch
from torch import Tensor

from deq_lightning.solvers import FixedPointMap, Partition, Solver
from deq_lightning.state import State, pack


@torch.no_grad()
def residual_curve(f: FixedPointMap, z0: State, solver: Solver) -> Tensor:
    """Return the relative residual ‖f(z) − z‖/‖f(z)‖ of every iterate of a solve that spends its whole budget.

    Args:
        f: the map.
        z0: where the solve starts.
        solver: the solver; its tolerances are left out.

    Returns:
        (evaluations, batch), infinite where a value is not finite; of a map with a partition, whose samples are one
        state, (evaluations, 1).
    """
    seen = _Seen(f)
    solver.changed(rtol=0.0, atol=0.0).solve(seen, z0)
    return torch.stack(seen.residuals)


class _Seen:
    """A map that keeps the residual of every state that it is evaluated at."""

    def __init__(self, f: FixedPointMap) -> None:
        self.f = f
        self.partition: Partition | None = getattr(f, "partition", None)
        self.residuals: list[Tensor] = []

    def __call__(self, z: State) -> State:
        fz = self.f(z)
        before = pack(z)
        after = pack(fz).to(before)
        size = torch.linalg.vector_norm(after, dim=1).clamp_min(torch.finfo(after.dtype).tiny)
        residual = torch.linalg.vector_norm(after - before, dim=1) / size
        self.residuals.append(residual.nan_to_num(nan=torch.inf))
        return fz
