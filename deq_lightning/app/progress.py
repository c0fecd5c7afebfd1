"""How far a fit has come: a bar on a terminal, and elsewhere a line an epoch."""

import math
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.callbacks import Callback, ProgressBar, Timer, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from deq_lightning.app.memory import peak_memory
from deq_lightning.app.runs import say
from deq_lightning.data.base import Described

MEANS = ("train_loss", "solver_converged")  # over the training batches since the last line
VALIDATION = ("val_loss", "val_solver_converged")


def display(trainer: Namespace) -> dict[str, bool]:
    """Return what Lightning shall show, from the trainer's config: a table of the model only where it is asked for."""
    return {"enable_model_summary": bool(trainer.enable_model_summary), "enable_progress_bar": _wants_bar(trainer)}


def progress(trainer: Namespace, fit: bool) -> list[Callback]:
    """Return what shows how far a run has come; a bar of the user's own takes the place of ours."""
    if _has_bar(trainer):
        return []
    if _wants_bar(trainer):
        return [Bar()]
    return [EpochLines()] if fit and not trainer.fast_dev_run else []


def _wants_bar(trainer: Namespace) -> bool:
    return trainer.enable_progress_bar is not False and (sys.stdout.isatty() or _has_bar(trainer))


def _has_bar(trainer: Namespace) -> bool:
    callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    return any(isinstance(callback, ProgressBar) for callback in callbacks)


class Clock:
    """Estimates the time left of a whole fit from the steps that it has taken."""

    began = 0.0
    first: int | None = None

    def start(self, trainer: pl.Trainer) -> None:
        """Start the clock."""
        self.began, self.first = time.monotonic(), trainer.global_step

    def left(self, trainer: pl.Trainer) -> str | None:
        """Return the time left as text; None where no end is known."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if self.first is None:
            return None
        times = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
        done, total = trainer.global_step - self.first, trainer.estimated_stepping_batches
        if done > 0 and 0 <= total < math.inf:
            times.append((time.monotonic() - self.began) / done * (total - trainer.global_step))
        known = [seconds for seconds in times if seconds is not None]
        return str(timedelta(seconds=max(0, round(min(known))))) if known else None


def position(trainer: pl.Trainer) -> str:
    """Return the epoch, counted from 1, and how many there are where that is known."""
    last = trainer.max_epochs
    if last is None or last < 0:
        return f"epoch {trainer.current_epoch + 1}"
    return f"epoch {trainer.current_epoch + 1:{len(str(last))}}/{last}"


class Bar(TQDMProgressBar):
    """Lightning's bar, with the share of samples whose equilibrium was found and the time left of the whole fit."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()

    def init_train_tqdm(self) -> Tqdm:
        """Make the bar; its last parts are cut off on a narrow terminal."""
        bar = super().init_train_tqdm()
        bar.bar_format = "{desc}|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}, {rate_noinv_fmt}]"
        return bar

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self.clock.start(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Name the epoch as the lines do."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(position(trainer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the bars, so that what is said of it has a line of its own."""
        del trainer, pl_module, exception
        for bar in (self._val_progress_bar, self._test_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return what stands in the bar, the time left first."""
        metrics = super().get_metrics(trainer, pl_module)
        for name in ("v_num", "solver_steps", "solver_residual"):
            metrics.pop(name, None)
        left, seen = self.clock.left(trainer), trainer.callback_metrics
        converged = seen.get("val_solver_converged", seen.get("solver_converged"))
        first = {} if left is None else {"left": left}
        last = {} if converged is None else {"converged": converged.item()}
        return {**first, **metrics, **last, **self._machine(trainer)}

    def _machine(self, trainer: pl.Trainer) -> dict[str, str]:
        """Return samples a second, and the largest memory."""
        rate, memory = self.train_progress_bar.format_dict["rate"], peak_memory(trainer)
        speed = {} if rate is None else {"speed": _speed(trainer, rate)}
        return speed | ({} if memory is None else {"memory": f"{memory} MiB"})


class EpochLines(Callback):
    """Prints a line after every validation, and at the end of an epoch that has not ended with one."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        del pl_module
        self.clock.start(trainer)
        self._begin()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the counts of the line."""
        del trainer, pl_module
        self._begin()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Add up what was logged of the batch; the host does not wait for it."""
        del args
        self.batches += 1
        metrics = trainer.callback_metrics
        for name in MEANS:
            if name in metrics:
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = total + metrics[name], count + 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note when training paused."""
        del trainer, pl_module
        self.stopped = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line with the figures of the validation."""
        if not trainer.sanity_checking:
            self._print(trainer, pl_module, self.stopped, _validation_names(trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line where the last validation was earlier."""
        if self.batches:
            self._print(trainer, pl_module, time.monotonic(), [])

    def _begin(self) -> None:
        self.batches = 0
        self.sums: dict[str, tuple[Any, int]] = {}
        self.began = time.monotonic()

    def _print(self, trainer: pl.Trainer, task: pl.LightningModule, until: float, names: list[str]) -> None:
        del task
        means = {name: total / count for name, (total, count) in self.sums.items()}
        figures = means | {name: trainer.callback_metrics[name] for name in names}
        if "val_solver_converged" in figures:  # whose budget may be longer
            figures.pop("solver_converged", None)
        rate = self.batches / max(until - self.began, 1e-9)
        left = self.clock.left(trainer)
        shown = sorted(figures, key=lambda name: name.endswith("solver_converged"))  # these last
        parts = [*_place(trainer), *(f"{name} {figures[name]:.4g}" for name in shown)]
        memory = peak_memory(trainer)
        parts += [_speed(trainer, rate), *([] if memory is None else [f"{memory:,} MiB"])]
        say("  ".join([*parts, *([] if left is None else [f"{left} left"])]), flush=True)
        self._begin()


def _place(trainer: pl.Trainer) -> Iterator[str]:
    """Yield the epoch, and the step where that says more."""
    yield position(trainer)
    if trainer.max_steps > 0:
        yield f"step {trainer.global_step}/{trainer.max_steps}"
    elif not trainer.is_last_batch:
        yield f"step {trainer.global_step}"


def _validation_names(trainer: pl.Trainer) -> list[str]:
    """Return the names of the figures that a line shows: the loss, those of the bar, and what is monitored."""
    monitored = [str(getattr(callback, "monitor", None)) for callback in trainer.checkpoint_callbacks]
    shown = [name for name in trainer.progress_bar_metrics if name.startswith("val_")]
    names = dict.fromkeys([VALIDATION[0], *shown, *monitored, *VALIDATION[1:]])
    return [name for name in names if name in trainer.callback_metrics and name not in MEANS]


def _speed(trainer: pl.Trainer, rate: float) -> str:
    """Return samples a second; steps, where the data does not know its size."""
    datamodule, loader = trainer.datamodule, cast(Any, trainer.train_dataloader)  # type: ignore[attr-defined]
    size = datamodule.split_sizes().get("train") if isinstance(datamodule, Described) else None
    if size is None or not hasattr(loader, "__len__") or not len(loader):
        return f"{rate:.3g} steps/s"
    return f"{rate * size / len(loader):,.0f} {datamodule.unit}/s"
