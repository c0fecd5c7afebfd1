"""What the solvers behind a batch report, as figures and as columns of a table."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deq_lightning.models import Equilibrium
from deq_lightning.solvers import Solution, Status


def solutions_of(equilibria: Sequence[Equilibrium]) -> list[Solution]:
    """Return the reports of those equilibria that were solved."""
    return [equilibrium.solution for equilibrium in equilibria if equilibrium.solution is not None]


def solver_figures(equilibria: Sequence[Equilibrium]) -> dict[str, Tensor]:
    """Return the mean steps and the mean residual over samples and equilibria, where one was solved."""
    solutions = solutions_of(equilibria)
    if not solutions:
        return {}
    return {
        "solver_steps": torch.cat([solution.steps for solution in solutions]).float().mean(),
        "solver_residual": torch.cat([solution.residual for solution in solutions]).mean(),
    }


def solver_columns(equilibria: Sequence[Equilibrium]) -> dict[str, Tensor]:
    """Return each sample's steps, summed over the equilibria, and its largest residual, where one was solved."""
    solutions = solutions_of(equilibria)
    if not solutions:
        return {}
    return {
        "solver_steps": torch.stack([solution.steps for solution in solutions]).sum(dim=0),
        "solver_residual": torch.stack([solution.residual for solution in solutions]).amax(dim=0),
    }


def found_column(equilibria: Sequence[Equilibrium]) -> dict[str, Tensor]:
    """Return for each sample 1 if all its equilibria were found, else 0, where one was solved."""
    solutions = solutions_of(equilibria)
    if not solutions:
        return {}
    found = torch.stack([solution.status == Status.converged for solution in solutions]).all(dim=0)
    return {"converged": found.long()}
