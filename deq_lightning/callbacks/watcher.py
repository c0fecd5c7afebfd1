"""Seeing what the solvers of a run report, whatever the task."""

from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from deq_lightning.models import Equilibrium, ImplicitModel
from deq_lightning.solvers import Solution


class SolutionWatcher(Callback):
    """Collects the reports of the solver from every implicit model in the module, in training and evaluation.

    Subclasses read `solutions`, the reports of the current batch without their `z`.
    """

    def __init__(self) -> None:
        self.solutions: list[Solution] = []
        self._handles: list[Any] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin to listen."""
        del trainer, stage
        self.forget()
        models = [module for module in pl_module.modules() if isinstance(module, ImplicitModel)]
        self._handles = [model.register_forward_hook(self._collect) for model in models]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop listening."""
        del trainer, pl_module, stage
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.forget()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Forget the batch before."""
        del args, kwargs
        self.forget()

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start

    def _collect(self, model: nn.Module, inputs: Any, output: tuple[Tensor, list[Equilibrium]]) -> None:
        del model, inputs
        solutions = [equilibrium.solution for equilibrium in output[1]]
        self.solutions += [replace(solution, z=()) for solution in solutions if solution is not None]

    def forget(self) -> None:
        """Drop the reports collected so far."""
        self.solutions = []
