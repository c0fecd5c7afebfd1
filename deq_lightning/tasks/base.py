"""What every task shares: the gradient strategy, the optimizer, the equilibrium's report."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor
from torch.utils._pytree import tree_map_only

from deq_lightning.configured import CombinationError
from deq_lightning.estimators import JacobianPenalty
from deq_lightning.gradients import GradientStrategy
from deq_lightning.models import Equilibrium, ImplicitModel, Network
from deq_lightning.samples import Samples, samples_of
from deq_lightning.solvers import Solution
from deq_lightning.tasks.hparams import RECIPE, check_hyperparameters, recipe, save_plain_hyperparameters
from deq_lightning.tasks.memory_format import ChannelsLast
from deq_lightning.tasks.random_state import RandomState
from deq_lightning.tasks.reports import solutions_of, solver_figures
from deq_lightning.tasks.schedules import ToEnd
from deq_lightning.tasks.trial import check_optimizer, check_schedule


class ImplicitTask(pl.LightningModule, ABC):
    """Trains a network with the gradient strategy found among the trainer's callbacks.

    Without one there, the model's own `gradient` is used and joins the callbacks, so that its schedule moves and is
    saved. A network without an equilibrium needs none.

    A task of your own writes `loss` and the steps of evaluation. It says in `monitor` and `mode` which figure selects
    the best checkpoint, and in `takes` what kinds of samples it is made for. For a task with labels derive from
    `SupervisedTask`, which does all that.

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
        CombinationError: from `setup`, if task or network are not made for the data; from `configure_optimizers`, if
            the schedule ends with the run and that has no end.
    """

    monitor: str = "val_loss"
    mode: str = "min"
    takes: Sequence[str] = ()  # kinds of `Samples`; empty: any
    takes_others: str = ""  # what to set for those that the class takes and this task does not

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
        save_plain_hyperparameters(self)
        self.net = net
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.penalty = penalty
        if compile:
            net.compile()
        self.channels_last = channels_last
        self._format = ChannelsLast(net)
        if channels_last:
            self._format.on()
        self._solved: list[Equilibrium] = []
        self.solutions: list[Solution] = []  # what the solvers reported of the batch logged last, without their `z`

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, trust_config: bool = False, **options: Any) -> Any:
        """Make the task of a checkpoint; nothing in the file is executed.

        Args:
            checkpoint_path: a file that `fit` or a trainer has written.
            args: as for Lightning's own `load_from_checkpoint`.
            trust_config: whether the file may name classes of others, which are then imported.
            options: as for Lightning's own, and arguments of the constructor that win over the saved ones.

        Raises:
            ValueError: if the file names a class that is not of this program or the libraries it is made for.
        """
        if not trust_config:
            check_hyperparameters(checkpoint_path, cls, options)
        return super().load_from_checkpoint(checkpoint_path, *args, **{"weights_only": True, **options})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint what `deq_lightning.load` makes the task of, as far as that is plain data."""
        data = getattr(self._trainer, "datamodule", None)
        checkpoint[RECIPE] = recipe(self, {"net": self.net, "gradient": self.gradient, "data": data})

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
        """Take the step, then let the model project its parameters to where it is well-posed."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.net.project(self._solved)
        self._solved = []

    def forward(self, x: Any) -> Tensor:
        """Return the prediction."""
        return self.net(x)[0]

    def implicit_models(self) -> list[ImplicitModel]:
        """Return the implicit models in the network: itself, several, or none."""
        return [module for module in self.net.modules() if isinstance(module, ImplicitModel)]

    @property
    def gradient(self) -> GradientStrategy | None:
        """The gradient strategy in force; None where there is no equilibrium."""
        models = self.implicit_models()
        return models[0].gradient if models else None

    def mode_of(self, figure: str) -> str:
        """Return whether the highest ("max") or lowest ("min") value of a figure is the best."""
        return self.mode if figure == self.monitor else "min"

    @property
    def departures(self) -> list[str]:
        """What makes results of this task not comparable."""
        return []

    def configure_callbacks(self) -> Sequence[Callback]:
        """Add the random state of checkpoints, and the model's own strategy where the trainer has none."""
        wanted: list[Callback] = [] if self._given(RandomState) else [RandomState()]
        if self.gradient is not None and not self._given(GradientStrategy):
            wanted.append(self.gradient)
        return wanted

    def setup(self, stage: str) -> None:
        """Give every implicit model the strategy, before the checkpoint restores its state."""
        del stage
        samples = samples_of(getattr(self.trainer, "datamodule", None))
        if samples is not None:
            self._check_samples(samples)
        if self.channels_last is None and self.trainer.strategy.root_device.type == "cpu":
            self._format.on()
        for gradient in self._given(GradientStrategy):
            for model in self.implicit_models():
                model.gradient = gradient

    def teardown(self, stage: str) -> None:
        """Restore the memory format, unless channels last was asked for."""
        del stage
        if self.channels_last is None:
            self._format.off()

    def _check_samples(self, samples: Samples) -> None:
        """Make sure that task and network are made for the data."""
        name = type(self.trainer.datamodule).__name__  # type: ignore[attr-defined]
        if self.takes and samples.kind not in self.takes:
            own = type(self).__name__
            raise CombinationError(f"`{own}` takes {' or '.join(self.takes)}, and `{name}` has {samples.kind}.")
        sizes = {name: getattr(self.net, name, getattr(self, name, None)) for name in samples.arguments()}
        for misfit in samples.misfits(sizes, name):
            raise CombinationError(f"{misfit}.")

    def _given(self, kind: type[Callback]) -> list[Any]:
        """Return the trainer's callbacks of a kind."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, kind)]

    def configure_optimizers(self) -> Any:
        """Make the optimizer and the schedule."""
        optimizer = self.make_optimizer(self.parameters())
        if self.make_lr_scheduler is None:
            return optimizer
        if math.isfinite(steps := self.trainer.estimated_stepping_batches):
            try:
                self.try_optimizer(int(steps))
            except ValueError as error:
                raise CombinationError(str(error)) from error
        scheduler = self.make_lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
        if isinstance(scheduler, ToEnd):
            self._end(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def try_optimizer(self, steps: int | None = None) -> None:
        """Make the optimizer and the schedule and try them out, before a run; the parameters stay as they are.

        Args:
            steps: optimizer steps of the run. None: not known.

        Raises:
            ValueError: if one of them has unusable arguments, or a learning rate would be negative or not finite.
        """
        optimizer = check_optimizer(lambda: self.make_optimizer(self.parameters()))
        if self.make_lr_scheduler is not None:
            check_schedule(self.make_lr_scheduler, optimizer, steps)

    def _end(self, scheduler: ToEnd) -> None:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise CombinationError(
                f"`{type(scheduler).__name__}` needs a run whose number of steps is known, got one without end. Set "
                "`trainer.max_epochs=N` or `trainer.max_steps=N`."
            )
        scheduler.end_at(int(steps))

    @property
    def test_names(self) -> Sequence[str]:
        """Names of the data's test sets, where there are several."""
        return getattr(getattr(self.trainer, "datamodule", None), "test_names", ())

    def postfix(self, dataloader_idx: int) -> str:
        """Return what the names of figures of one of several test sets end with, `/NAME`."""
        return f"/{self.test_names[dataloader_idx]}" if self.test_names and self.trainer.testing else ""

    def log_equilibria(
        self, equilibria: Sequence[Equilibrium], batch_size: int | None = None, prefix: str = "", postfix: str = ""
    ) -> None:
        """Log the mean `solver_steps` and `solver_residual` over samples and equilibria, where one was solved.

        The reports stay in `solutions`, where callbacks find them, until the next batch.
        """
        self.solutions = [replace(solution, z=()) for solution in solutions_of(equilibria)]
        training = prefix == ""
        values = {prefix + name + postfix: value for name, value in solver_figures(equilibria).items()}
        self.log_dict(
            values,
            prog_bar=training,
            on_epoch=not training,
            sync_dist=not training,
            batch_size=batch_size,
            add_dataloader_idx=False,
        )
