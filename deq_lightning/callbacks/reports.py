"""The reports of a run's solvers."""

import pytorch_lightning as pl

from deq_lightning.solvers import Solution
from deq_lightning.tasks import ImplicitTask


def reports_of(task: pl.LightningModule) -> list[Solution]:
    """Return the solvers' reports on the current batch; none for a module that is not an `ImplicitTask`."""
    return task.solutions if isinstance(task, ImplicitTask) else []
