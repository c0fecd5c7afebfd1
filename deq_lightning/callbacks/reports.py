"""What the solvers of a run report."""

import pytorch_lightning as pl

from deq_lightning.solvers import Solution
from deq_lightning.tasks import ImplicitTask


def reports_of(task: pl.LightningModule) -> list[Solution]:
    """Return what the solvers reported of the current batch; nothing of a module that is no `ImplicitTask`."""
    return task.solutions if isinstance(task, ImplicitTask) else []
