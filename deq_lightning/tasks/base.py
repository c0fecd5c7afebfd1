"""What every task shares: the gradient strategy, the optimizer, the equilibrium's report, and exact resumption."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from deq_lightning.configured import CombinationError
from deq_lightning.estimators import JacobianPenalty
from deq_lightning.gradients import GradientStrategy
from deq_lightning.models import Equilibrium, ImplicitModel, Network
from deq_lightning.tasks.schedules import ToEnd


class ImplicitTask(pl.LightningModule, ABC):
    """Trains a network with the gradient strategy found among the trainer's callbacks.

    Without one there, the model's own `gradient` is used and joins the callbacks, so that its schedule moves and is
    saved. A network without an equilibrium needs none. Subclasses write `loss` and the steps of evaluation.

    Args:
        net: the model.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the schedule from the optimizer; stepped after every optimizer step (Lightning's
            `ReduceLROnPlateau`: after every epoch). None: constant.
        penalty: a penalty on the Jacobian at the equilibrium, added to the loss in training. None: no such term.
        compile: whether to compile the cell with `torch.compile`; slow first steps. Not with `penalty`.
        channels_last: whether images and the weights of convolutions are stored with the channels last. None: on a CPU,
            where training steps were measured to be as fast or faster with it.

    Raises:
        ValueError: if `penalty` is wanted with `compile` or without an equilibrium.
        CombinationError: from `configure_optimizers`, if the schedule ends with the run and that has no end.
    """

    def __init__(
        self,
        net: Network,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        penalty: JacobianPenalty | None = None,
        compile: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__()
        if compile and penalty is not None:
            raise ValueError(
                "`penalty` differentiates the cell twice, which `compile` cannot do. Leave one of them out."
            )
        if penalty is not None and not any(isinstance(module, ImplicitModel) for module in net.modules()):
            raise ValueError(f"`penalty` is on an equilibrium, and `{type(net).__name__}` has none. Leave it out.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attribute 'net' is an instance of `nn.Module`")  # removed below
            self.save_hyperparameters()
        # Only plain data goes into checkpoints, so that they load without unpickling code. Runs from the command line
        # keep everything, as class paths and numbers; those made in Python are rebuilt with their objects passed again.
        for name in [name for name, value in self.hparams.items() if not _is_plain(value)]:
            self.hparams.pop(name)
        self.net = net
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.penalty = penalty
        if compile:
            net.compile()
        self.channels_last = channels_last
        self._format: RemovableHandle | None = None
        if channels_last:
            self._store_channels_last()
        self._rng_state: dict[str, Tensor] = {}
        self._solved: list[Equilibrium] = []

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, list[Equilibrium]]:
        """Return the loss of a batch, without the penalty, and the equilibria behind it; logs nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch with the penalty added."""
        del batch_idx
        return self.total(*self.loss(batch))

    def total(self, loss: Tensor, equilibria: Sequence[Equilibrium]) -> Tensor:
        """Log what a training batch gave, and return its loss with the penalty added."""
        self.log("train_loss", loss, prog_bar=True)
        self.log_equilibria(equilibria)
        self._solved = [Equilibrium(f, tree_map_only(Tensor, Tensor.detach, z), None) for f, z, _ in equilibria]
        if self.penalty is None:
            return loss
        penalty = self.penalty(equilibria, self.trainer.global_step).to(loss)
        self.log("jacobian_penalty", penalty)
        return loss + penalty

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, and let the model bring its parameters back to where it is well-posed."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.net.project(self._solved)
        self._solved = []

    def forward(self, x: Any) -> Tensor:
        """Return the prediction."""
        return self.net(x)[0]

    def configure_callbacks(self) -> Sequence[Callback]:
        """Add the model's own strategy where the trainer has none."""
        given = any(isinstance(callback, GradientStrategy) for callback in self._callbacks())
        return [] if given or self.strategy is None else [self.strategy]

    def setup(self, stage: str) -> None:
        """Give every implicit model the one strategy; this is before the checkpoint restores the strategy's state."""
        del stage
        if self.channels_last is None and self._format is None and self.trainer.strategy.root_device.type == "cpu":
            self._store_channels_last()
        for strategy in [callback for callback in self._callbacks() if isinstance(callback, GradientStrategy)]:
            for model in self.implicit_models():
                model.gradient = strategy

    def teardown(self, stage: str) -> None:
        """Put the memory format back where nobody asked for it: not all of PyTorch's utilities take another one."""
        del stage
        if self.channels_last is None and self._format is not None:
            self._format.remove()
            self._format = None
            self.net.to(memory_format=torch.contiguous_format)

    def _store_channels_last(self) -> None:
        self.net.to(memory_format=torch.channels_last)
        self._format = self.net.register_forward_pre_hook(_channels_last)

    def implicit_models(self) -> list[ImplicitModel]:
        """Return the implicit models in the network: itself, several, or none."""
        return [module for module in self.net.modules() if isinstance(module, ImplicitModel)]

    @property
    def strategy(self) -> GradientStrategy | None:
        """The strategy in force; None where there is no equilibrium."""
        models = self.implicit_models()
        return models[0].gradient if models else None

    def _callbacks(self) -> list[Callback]:
        return self.trainer.callbacks  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        """Make the optimizer and the schedule."""
        optimizer = self.make_optimizer(self.parameters())
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
        if isinstance(scheduler, ToEnd):
            self._end(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _end(self, scheduler: ToEnd) -> None:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise CombinationError(
                f"`{type(scheduler).__name__}` needs a run whose number of steps is known, got one without end. Type "
                "`--trainer.max_epochs N` or `--trainer.max_steps N`."
            )
        scheduler.end_at(int(steps))

    def log_equilibria(
        self, equilibria: Sequence[Equilibrium], batch_size: int | None = None, prefix: str = ""
    ) -> None:
        """Log the mean `solver_steps` and `solver_residual` over samples and equilibria, where one was solved."""
        solutions = [equilibrium.solution for equilibrium in equilibria if equilibrium.solution is not None]
        if not solutions:
            return
        training = prefix == ""
        values = {
            f"{prefix}solver_steps": torch.cat([solution.steps for solution in solutions]).float().mean(),
            f"{prefix}solver_residual": torch.cat([solution.residual for solution in solutions]).mean(),
        }
        self.log_dict(values, prog_bar=training, on_epoch=not training, sync_dist=not training, batch_size=batch_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the random state, so that a resumed run draws what the uninterrupted one would have drawn."""
        checkpoint["rng_state"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint["rng_state"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state until training starts."""
        self._rng_state = checkpoint.get("rng_state", {})

    def on_train_start(self) -> None:
        """Restore the random state; several processes must not share the one that was saved."""
        if self.trainer.world_size > 1:
            return
        if "cpu" in self._rng_state:
            torch.set_rng_state(self._rng_state["cpu"].cpu())
        if "cuda" in self._rng_state and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._rng_state["cuda"].cpu(), self.device)


def solver_columns(equilibria: Sequence[Equilibrium]) -> dict[str, Tensor]:
    """Return each sample's steps, summed over the equilibria, and its largest residual, where one was solved."""
    solutions = [equilibrium.solution for equilibrium in equilibria if equilibrium.solution is not None]
    if not solutions:
        return {}
    return {
        "solver_steps": torch.stack([solution.steps for solution in solutions]).sum(dim=0),
        "solver_residual": torch.stack([solution.residual for solution in solutions]).amax(dim=0),
    }


def _channels_last(net: torch.nn.Module, inputs: Any) -> Any:
    """Give images the memory format of the model."""
    del net

    def convert(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    return tree_map_only(Tensor, convert, inputs)


def _is_plain(value: Any) -> bool:
    """Say whether `value` is made of numbers, strings, lists and dictionaries alone."""
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)
