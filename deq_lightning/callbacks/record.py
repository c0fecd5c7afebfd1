"""What is kept of the solves of a run, for those who look at it afterwards."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deq_lightning.estimators import residual_curve
from deq_lightning.models import Equilibrium, ImplicitModel
from deq_lightning.models.cell_map import CellMap
from deq_lightning.solvers import Solution, Status

SHARES = (0.1, 0.5, 0.9)  # of the samples that have a smaller residual
KEPT = 40  # curves of a run: where there are more, every second one goes
Curve = dict[str, Any]


class Record:
    """Residuals along solves, at several points of the training, and the steps of every sample of a split.

    Attributes:
        curves: each with the optimizer `step` and `epoch`, the `layer` that was solved, counted from 0, and the
            `residuals`: for each evaluation those that a tenth, half and nine tenths of the samples are below.
        steps: by the name of a split: of the samples whose equilibrium was `found`, and of those `not found`, how many
            took so many steps.
    """

    def __init__(self) -> None:
        self.curves: list[Curve] = []
        self.steps: dict[str, dict[str, dict[int, int]]] = {}

    def add_curves(
        self, equilibria: Sequence[Equilibrium], models: Sequence[ImplicitModel], step: int, epoch: int
    ) -> None:
        """Solve again from the start, with the budget of the models, and keep how the residual falls.

        Args:
            equilibria: what was solved.
            models: that solved them, in their order; the last one has solved whatever is left.
            step: optimizer steps so far.
            epoch: of the training.
        """
        for layer, (f, _, solution) in enumerate(equilibria):
            if solution is None or not isinstance(f, CellMap):
                continue
            model = models[min(layer, len(models) - 1)]
            found = residual_curve(f, model.initial_state(f.u), model.solver.for_evaluation())
            if found.shape[1] == 0:
                continue
            shares = torch.quantile(found.float(), found.new_tensor(SHARES, dtype=torch.float), dim=1).T
            finite = [[value if value < float("inf") else None for value in row] for row in shares.tolist()]
            self.curves.append({"step": step, "epoch": epoch, "layer": layer, "residuals": finite})
        if len({curve["step"] for curve in self.curves}) > KEPT:
            kept = set(sorted({curve["step"] for curve in self.curves})[::2])
            self.curves = [curve for curve in self.curves if curve["step"] in kept]

    def count_steps(self, split: str, solutions: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Count the samples of a split by their steps.

        Args:
            split: its name.
            solutions: steps and status of the samples of each solve.
        """
        if not solutions:
            return
        steps = torch.cat([steps for steps, _ in solutions])
        found = torch.cat([status for _, status in solutions]) == Status.converged
        self.steps[split] = {
            name: dict(sorted(Counter(steps[chosen].tolist()).items()))
            for name, chosen in (("found", found), ("not found", ~found))
        }


def of_samples(solutions: Sequence[Solution]) -> list[tuple[Tensor, Tensor]]:
    """Return steps and status of the samples of each solve."""
    return [(solution.steps, solution.status) for solution in solutions]
