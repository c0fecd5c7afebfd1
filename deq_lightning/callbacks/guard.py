"""Stop a diverging run, and keep a healthy checkpoint to go back to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from deq_lightning.callbacks.finite import not_finite
from deq_lightning.callbacks.reports import reports_of
from deq_lightning.callbacks.saving import EverySave
from deq_lightning.configured import RunError, whole, within
from deq_lightning.solvers import Status

LOSS = "the loss was not finite"
OPTIMIZER = "optimizer"
NEVER = -(2**62)  # below minus every step
CAUSES = {
    "the solver diverged on most samples": "Use a solver with damping, some "
    "`gradient.pretrain_steps`, a Jacobian penalty, or a lower learning rate.",
    LOSS: "Lower the learning rate, clip gradients (`trainer.gradient_clip_val`), add a Jacobian "
    "penalty, or look for such values in the data.",
}


class DivergenceError(RunError):
    """Training has diverged; the message says what was seen, what to change, and which checkpoint to go back to."""


class DivergenceGuard(EverySave):
    """Stops training after a run of bad steps: the loss is not finite, or the solver diverges on most samples.

    At the end of an epoch, before a validation and at the end of training it stops at once where the weights, the
    optimizer's state or the last loss are not finite, and no checkpoint is ever written from such weights.

    Keeps `healthy.ckpt`, written every `save_every` steps from weights that have just given a finite loss, so that a
    checkpoint from before the bad steps exists. Counting happens on the device.

    Args:
        patience: bad steps in a row that stop the run, 1 or more.
        diverged_share: share of diverged samples above which a batch's solve counts as diverged, in [0, 1).
        check_every: steps between checks of the count, 1 or more. A check makes the host wait for the device.
        save_every: optimizer steps between healthy checkpoints, 1 or more.
        dirpath: folder of `healthy.ckpt`; of several processes, the first one's counts. None: the trainer's root
            folder. Without checkpointing nothing is written.

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
        whole(1, patience=patience, check_every=check_every, save_every=save_every)
        within("[0, 1)", diverged_share=diverged_share)
        self.patience = patience
        self.diverged_share = diverged_share
        self.check_every = check_every
        self.save_every = save_every
        self.dirpath = dirpath
        self.saved: tuple[Path, int] | None = None
        self._folder = Path()
        self._by_design: set[str] = set()
        self._runs, self._since = torch.zeros(2, 2, dtype=torch.long)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Agree with the other processes on the folder, and see which buffers are meant to be infinite."""
        super().setup(trainer, pl_module, stage)
        self._folder = Path(trainer.strategy.broadcast(str(self.dirpath or trainer.default_root_dir)))
        self._by_design = {name for name, buffer in pl_module.named_buffers() if not_finite({name: buffer})}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the counts of bad steps."""
        del trainer
        self.saved = None
        self._runs, self._since = torch.zeros(2, 2, dtype=torch.long, device=pl_module.device)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Save weights that have just given a finite loss, every `save_every` steps."""
        step = trainer.global_step
        fast_dev_run = trainer.fast_dev_run  # type: ignore[attr-defined]
        if step % self.save_every or fast_dev_run or not trainer.checkpoint_callbacks:
            return
        if self.saved is not None and self.saved[1] == step:
            return  # a later batch of the same optimizer step
        if (_worst(trainer, torch.stack([*self._seen(pl_module, loss), *(self._runs > 0)]).long()) == 0).all():
            path = self._folder / "healthy.ckpt"
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
        seen = self._seen(pl_module, loss)
        self._since = torch.where(seen & (self._runs == 0), trainer.global_step, self._since)
        self._runs = torch.where(seen, self._runs + 1, 0)
        if (batch_idx + 1) % self.check_every and not trainer.is_last_batch:
            return
        runs = dict(zip(CAUSES, _worst(trainer, self._runs).tolist(), strict=True))
        cause = max(runs, key=runs.__getitem__)  # the one that came first; of two that came together, the solver's
        if runs[cause] >= self.patience:
            raise self._error(trainer, f"{cause} in {runs[cause]} steps in a row", cause)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate only what is finite."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_unless_finite(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End no epoch with what is not finite."""
        self._stop_unless_finite(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nor the training."""
        self._stop_unless_finite(trainer, pl_module)

    def on_every_save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what is not finite."""
        del pl_module
        weights = [checkpoint.get(part, {}) for part in ("state_dict", "current_model_state")]
        states = [optimizer.get("state") for optimizer in checkpoint.get("optimizer_states", [])]
        self._refuse(trainer, weights, states, or_loss=False)

    def _stop_unless_finite(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weights = [dict(pl_module.named_parameters()) | dict[str, Tensor](pl_module.named_buffers())]
        self._refuse(trainer, weights, [list(each.state.values()) for each in trainer.optimizers], or_loss=True)

    def _refuse(self, trainer: pl.Trainer, weights: Sequence[Mapping[str, Any]], states: Any, or_loss: bool) -> None:
        """Raise where weights or states of optimizers are not finite; `or_loss`: or the loss of the last batch."""
        device, parts = self._runs.device, [*weights, {OPTIMIZER: states}]
        bad = [name for part in parts for name in not_finite(part, device) if name not in self._by_design]
        since = -int(self._since[1]) if self._runs[1] > 0 else NEVER
        found = torch.tensor([bool(bad), since], device=device)
        if not trainer.interrupted:  # else the other processes may be elsewhere
            found = _worst(trainer, found)
        any_bad, since = found.tolist()
        if not any_bad and not (or_loss and since != NEVER):
            return
        where = f" ({bad[0]})" if bad else " of another process"
        seen = [f"the weights or the optimizer's state{where} are not finite"] * any_bad
        seen += [f"the loss is not finite since step {-since}"] * (since != NEVER)
        raise self._error(trainer, " and ".join(seen), LOSS)

    def _error(self, trainer: pl.Trainer, seen: str, cause: str) -> DivergenceError:
        return DivergenceError(
            f"stopped at step {trainer.global_step}: {seen}. {CAUSES[cause]} {self._way_back(trainer)}"
        )

    def _seen(self, task: pl.LightningModule, loss: Tensor) -> Tensor:
        """Return which of the causes this batch shows, (2,)."""
        diverged = [solution.status == Status.diverged for solution in reports_of(task)]
        share = torch.cat(diverged).float().mean() if diverged else torch.zeros_like(loss, dtype=torch.float32)
        return torch.stack([share > self.diverged_share, ~torch.isfinite(loss.detach())])

    def _way_back(self, trainer: pl.Trainer) -> str:
        # Of those that write, `best_model_path` may already be the one that was refused.
        written = [getattr(callback, "_last_checkpoint_saved", None) for callback in trainer.checkpoint_callbacks]
        others = [Path(path) for path in (trainer.ckpt_path, *written) if path and Path(path).is_file()]
        if self.saved is not None and (self.saved[1] > 0 or not others):
            path, step = self.saved
            return f"From before (step {step}): {path}"
        if others:
            return f"From before: {max(others, key=lambda path: path.stat().st_mtime)}"
        return "No checkpoint from before was kept."


def _worst(trainer: pl.Trainer, values: Tensor) -> Tensor:
    """Return the maximum over the processes, so that all decide the same."""
    return trainer.strategy.reduce(values.clone(), reduce_op="max")
