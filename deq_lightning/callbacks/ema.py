"""An exponential moving average of the weights."""

import re
import warnings
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deq_lightning.callbacks.saving import EverySave
from deq_lightning.configured import CombinationError, RunError, within


class EMA(EverySave, WeightAveraging):
    """Averages the weights over the steps; evaluates, and keeps, the average.

    After every optimizer step: average = decay * average + (1 - decay) * weights, from the first step on. Training
    goes on with the weights themselves. Validations, the end of training and the `state_dict` of checkpoints have the
    average, so that testing and predicting need no callback; a resumed run goes on from the weights themselves, which
    are saved beside it. Buffers are not averaged: they are always those of the model.

    Args:
        decay: share of the average that a step leaves as it was, in (0, 1).

    Raises:
        ValueError: if `decay` is out of its range.
        CombinationError: when training begins, if the weights are stored in half precision.
    """

    def __init__(self, decay: float = 0.999) -> None:
        within("(0, 1)", decay=decay)
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.decay = decay
        self._forget()

    def _forget(self) -> None:
        self._average_model = None
        self._weights = nn.ParameterList()  # the model's
        self._kept: list[Tensor] | None = None  # the weights themselves, while the model holds the average
        self._latest_update_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin without an average: the model may not have its layers yet."""
        super().setup(trainer, pl_module, stage)
        if stage == TrainerFn.FITTING:
            self._forget()

    def _start(self, pl_module: pl.LightningModule) -> AveragedModel:
        self._forget()
        self._weights = nn.ParameterList(pl_module.parameters())
        self._average_model = AveragedModel(self._weights, **self._kwargs)  # of the parameters alone
        return self._average_model

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the average the device and the precision of the weights."""
        del trainer
        average = self._average_model or self._start(pl_module)
        for one, weight in zip(average.parameters(), self._weights, strict=True):
            if weight.dtype in (torch.bfloat16, torch.float16):
                raise CombinationError(
                    f"An average needs weights of 32 bits or more, got {weight.dtype}, which loses small changes. "
                    "Set `trainer.precision=bf16-mixed`."
                )
            one.data = one.data.to(weight)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count steps from here on: a checkpoint has the average of its own step."""
        del pl_module
        self._latest_update_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, if the batch ended an optimizer step."""
        del pl_module, outputs, batch, batch_idx
        self._update(trainer)

    def _update(self, trainer: pl.Trainer) -> None:
        if self._average_model is not None and trainer.global_step > self._latest_update_step:
            self._average_model.update_parameters(self._weights)
            self._latest_update_step = trainer.global_step

    @property
    def _updated(self) -> bool:
        return self._average_model is not None and bool(self._average_model.n_averaged > 0)

    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule, averaged: bool) -> None:
        """Have the model hold the average or the weights themselves, while it is trained."""
        if trainer.state.fn != TrainerFn.FITTING or not self._updated:
            return
        if averaged and self._kept is None:
            self._kept = [weight.detach().clone() for weight in self._weights]
            self._copy_average_to_current(pl_module)
        elif not averaged and self._kept is not None:
            for weight, kept in zip(self._weights, self._kept, strict=True):
                weight.data.copy_(kept)
            self._kept = None  # last, so that a Ctrl-C between the two loses nothing

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        self._show(trainer, pl_module, averaged=True)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the weights themselves."""
        self._show(trainer, pl_module, averaged=False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the weights themselves in the model, also where it stopped in a validation."""
        del exception
        self._show(trainer, pl_module, averaged=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the model, and keep the weights themselves for checkpoints that are still to come."""
        self._show(trainer, pl_module, averaged=True)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: Lightning would ask for this callback wherever the checkpoint is evaluated."""
        return {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as `state_dict`, and the weights themselves beside it."""
        self._update(trainer)  # for a callback that saves before this one has seen the step
        if self._average_model is not None and self._updated:
            averaged, weights = self._states(pl_module, checkpoint["state_dict"])
            checkpoint["averaging_state"] = {"n_averaged": self._average_model.n_averaged}
            checkpoint["current_model_state"], checkpoint["state_dict"] = weights, averaged

    def on_every_save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average in checkpoints of the weights alone as well."""
        self._update(trainer)
        if self._updated:
            checkpoint["state_dict"], _ = self._states(pl_module, checkpoint["state_dict"])

    def _states(self, pl_module: pl.LightningModule, state: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """Return the state of the model with the average and with the weights themselves; `state` is what it holds."""
        assert self._average_model is not None
        names = dict(pl_module.named_parameters(remove_duplicate=False))  # tied weights have several

        def holding(weights: Iterable[Tensor]) -> Any:
            values = {id(one): other.detach() for one, other in zip(self._weights, weights, strict=True)}
            changed: Any = copy(state)
            changed.update({name: values[id(weight)] for name, weight in names.items() if name in state})
            return changed

        return holding(self._average_model.parameters()), holding(self._kept or self._weights)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue the average and the weights themselves; without an average in the checkpoint, start one there.

        Raises:
            RunError: if the checkpoint is damaged.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            self._forget()  # the model now holds what was loaded, which is the average
            return
        average = self._start(pl_module)
        if "averaging_state" not in checkpoint:
            return
        try:
            average.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)
        except (KeyError, RuntimeError, TypeError, AttributeError, IndexError) as error:
            raise RunError(
                "`current_model_state` and `averaging_state` of the checkpoint must be those of this model, got "
                "others. Use another checkpoint of the run."
            ) from error


def drop_averaging(trainer: pl.Trainer) -> None:
    """Take averages out of the callbacks: a checkpoint's `state_dict` is the average, to be evaluated as it is."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for callback in [callback for callback in callbacks if isinstance(callback, WeightAveraging)]:
        callbacks.remove(callback)
        asked = f"Be aware that when using `ckpt_path`.*{re.escape(callback.state_key)}"
        warnings.filterwarnings("ignore", message=asked)  # that it be given
