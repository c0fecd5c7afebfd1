"""Tune the step of an operator splitting during a run."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from deq_lightning.configured import above, whole, within
from deq_lightning.estimators.modes import evaluating
from deq_lightning.models.base import CellMap, Equilibrium
from deq_lightning.models.monotone.splitting import MonotoneModel
from deq_lightning.solvers import Status


class SplittingTuner(Callback):
    """Sets `alpha` of monotone networks (`MON`, `MONConv`, `MONMultiTier`) to what solves a batch in the fewest steps.

    After one batch early in the run, and after the middle batch of every epoch, it solves that batch again with alpha
    at `max_alpha`, half of it, a quarter, and so on while the mean number of steps falls, and keeps the best. If no
    alpha solves every sample, alpha stays as it is. Nothing else in the run changes, and other networks are left alone.
    With several processes, the first decides.

    Args:
        first_batch: index of the early batch, in the first epoch, 0 or more.
        max_alpha: first value to try, above 0.
        min_alpha: smallest value to try, above 0.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        The code published with Winston and Kolter, "Monotone operator equilibrium networks", NeurIPS 2020, at the same
        moments; it counts the iterations of the whole batch, and goes on halving while they do not rise.
    """

    def __init__(self, first_batch: int = 30, max_alpha: float = 1.0, min_alpha: float = 1e-4) -> None:
        whole(0, first_batch=first_batch)
        above(0, max_alpha=max_alpha)
        within(f"(0, {max_alpha}]", "The upper end is `max_alpha`.", min_alpha=min_alpha)
        self.first_batch = first_batch
        self.max_alpha = max_alpha
        self.min_alpha = min_alpha
        self._injections: dict[MonotoneModel, Tensor] = {}
        self._handles: list[Any] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the networks during the batches after which they are tuned."""
        del batch
        self._stop()  # removes hooks left by a batch that raised
        # Read off the position alone, so that a resumed run does what the uninterrupted one would have done.
        early = trainer.current_epoch == 0 and batch_idx == self.first_batch
        if early or batch_idx == trainer.num_training_batches // 2:
            models = [module for module in pl_module.modules() if isinstance(module, MonotoneModel)]
            self._handles = [model.register_forward_hook(self._listen) for model in models]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tune the networks whose solves were listened to."""
        del pl_module, outputs, batch, batch_idx
        for model, u in self._injections.items():
            with torch.no_grad(), evaluating(model), trainer.precision_plugin.forward_context():
                model.alpha.fill_(trainer.strategy.broadcast(self.best(model, u)))
        self._stop()

    def best(self, model: MonotoneModel, u: Tensor) -> float:
        """Return the alpha with the fewest steps for the injection `u`; the model's own if none solves every sample."""
        alpha, chosen, fewest = self.max_alpha, None, torch.inf
        while alpha >= self.min_alpha:
            steps = steps_with(alpha, model, u)
            if steps < fewest:
                chosen, fewest = alpha, steps
            elif chosen is not None:
                break
            alpha /= 2
        return model.alpha.item() if chosen is None else chosen

    def _listen(self, model: nn.Module, inputs: Any, output: tuple[Tensor, list[Equilibrium]]) -> None:
        del inputs
        (equilibrium,) = output[1]
        if equilibrium.solution is not None:  # nothing is solved in the unrolled stage
            assert isinstance(model, MonotoneModel) and isinstance(equilibrium.f, CellMap)
            self._injections[model] = equilibrium.f.u.detach()

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._injections = [], {}


def steps_with(alpha: float, model: MonotoneModel, u: Tensor) -> float:
    """Return the mean steps of a solve with that alpha, infinite if a sample is not solved; the model stays as it is.

    Bypasses the model's forward hooks, so that the trial is not taken for a solve of the run.
    """
    own = model.alpha.clone()
    model.alpha.fill_(alpha)
    try:
        solution = model.equilibrium(u).solution
    finally:
        model.alpha.copy_(own)
    if solution is None or (solution.status != Status.converged).any():
        return torch.inf
    return solution.steps.float().mean().item()
