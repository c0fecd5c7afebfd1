"""Stop a diverging run, and keep a healthy checkpoint to go back to."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from deq_lightning.callbacks.reports import reports_of
from deq_lightning.configured import RunError, at_least, within
from deq_lightning.solvers import Status

CAUSES = {
    "the solver diverged on most samples": "Use a solver with damping, some "
    "`gradient.pretrain_steps`, a Jacobian penalty, or a lower learning rate.",
    "the loss was not finite": "Lower the learning rate, clip gradients (`trainer.gradient_clip_val`), or add a "
    "Jacobian penalty.",
}


class DivergenceError(RunError):
    """Training has diverged; the message says what was seen, what to change, and which checkpoint to go back to."""


class DivergenceGuard(Callback):
    """Stops training after a run of bad steps: the loss is not finite, or the solver diverges on most samples.

    Keeps `healthy.ckpt`, written every `save_every` steps from weights that have just given a finite loss, so that a
    checkpoint from before the bad steps exists. Counting happens on the device.

    Args:
        patience: bad steps in a row that stop the run, 1 or more.
        diverged_share: share of diverged samples above which a batch's solve counts as diverged, in [0, 1).
        check_every: steps between checks of the count, 1 or more. A check makes the host wait for the device.
        save_every: optimizer steps between healthy checkpoints, 1 or more.
        dirpath: folder of `healthy.ckpt`. None: the trainer's root folder. Without checkpointing nothing is written.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        patience: int = 20,
        diverged_share: float = 0.5,
        check_every: int = 10,
        save_every: int = 500,
        dirpath: str | None = None,
    ) -> None:
        at_least(1, patience=patience, check_every=check_every, save_every=save_every)
        within("[0, 1)", diverged_share=diverged_share)
        self.patience = patience
        self.diverged_share = diverged_share
        self.check_every = check_every
        self.save_every = save_every
        self.dirpath = dirpath
        self.saved: tuple[Path, int] | None = None
        self._runs = torch.zeros(2, dtype=torch.long)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the counts of bad steps."""
        del trainer
        self.saved = None
        self._runs = torch.zeros(2, dtype=torch.long, device=pl_module.device)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Save weights that have just given a finite loss, every `save_every` steps."""
        step = trainer.global_step
        fast_dev_run = trainer.fast_dev_run  # type: ignore[attr-defined]
        if step % self.save_every or fast_dev_run or not trainer.checkpoint_callbacks:
            return
        if self.saved is not None and self.saved[1] == step:
            return  # a later batch of the same optimizer step
        if (_worst(trainer, torch.stack([*self._seen(pl_module, loss), *(self._runs > 0)]).long()) == 0).all():
            path = Path(self.dirpath or trainer.default_root_dir) / "healthy.ckpt"
            trainer.save_checkpoint(path, weights_only=False)  # the whole state, not only the weights
            self.saved = path, step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count bad steps, and stop the run after `patience` of them in a row."""
        del batch
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None:
            return  # the task skipped the batch
        self._runs = torch.where(self._seen(pl_module, loss), self._runs + 1, 0)
        if (batch_idx + 1) % self.check_every and not trainer.is_last_batch:
            return
        runs = dict(zip(CAUSES, _worst(trainer, self._runs).tolist(), strict=True))
        cause = max(runs, key=runs.__getitem__)  # the one that came first; of two that came together, the solver's
        if runs[cause] >= self.patience:
            seen = f"stopped at step {trainer.global_step}: {cause} in {runs[cause]} steps in a row."
            raise DivergenceError(f"{seen} {CAUSES[cause]} {self._way_back()}")

    def _seen(self, task: pl.LightningModule, loss: Tensor) -> Tensor:
        """Return which of the causes this batch shows, (2,)."""
        diverged = [solution.status == Status.diverged for solution in reports_of(task)]
        share = torch.cat(diverged).float().mean() if diverged else torch.zeros_like(loss, dtype=torch.float32)
        return torch.stack([share > self.diverged_share, ~torch.isfinite(loss.detach())])

    def _way_back(self) -> str:
        if self.saved is None:
            return "No checkpoint from before was kept."
        path, step = self.saved
        return f"From before (step {step}): {path}"


def _worst(trainer: pl.Trainer, values: Tensor) -> Tensor:
    """Return the maximum over the processes, so that all decide the same."""
    return trainer.strategy.reduce(values.clone(), reduce_op="max")
