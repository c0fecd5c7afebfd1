"""A solve that also gives the solver's estimate of (I − Jᵀ)⁻¹."""

from collections.abc import Callable

import torch
from torch import Tensor

from deq_lightning.configured import CombinationError
from deq_lightning.solvers import FixedPointMap, Solution, Solver
from deq_lightning.solvers.transforms import transformed
from deq_lightning.state import State


def solve_for_both(
    f: FixedPointMap, z0: State, solver: Solver, who: str
) -> tuple[Solution, Callable[[Tensor], Tensor] | None]:
    """Solve, and return as well the solver's estimate of (I − Jᵀ)⁻¹; None where nothing is differentiated.

    Args:
        f: the map.
        z0: where the solve starts.
        solver: the solver.
        who: needs the estimate.

    Raises:
        CombinationError: if the solver makes none.
    """
    if not torch.is_grad_enabled() or transformed():
        return solver.solve(f, z0), None
    solution, memory = solver.run(Undivided(f), z0)
    inverse = getattr(memory, "transposed_inverse", None)
    if inverse is None:
        name = type(solver).__name__
        raise CombinationError(
            f"{who} needs `Broyden` as the model's solver, got `{name}`. Set `net.solver=Broyden()`."
        )
    return solution, inverse


class Undivided:
    """A map without parts: all samples stay in a solve to its end, and with them what the solver remembers of them.

    Args:
        f: the map.
    """

    def __init__(self, f: FixedPointMap) -> None:
        self.f = f
        self.partition = getattr(f, "partition", None)

    def __call__(self, z: State) -> State:
        """Evaluate the map."""
        return self.f(z)
