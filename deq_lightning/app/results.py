"""What a run has come to, in files beside its checkpoints."""

import csv
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

import deq_lightning
from deq_lightning.app.cost import Cost, cost_of
from deq_lightning.app.memory import forget_peak, peak_memory
from deq_lightning.app.report.command import write_report
from deq_lightning.app.report.reading import METRICS, REACHED, RESULTS, curves_of
from deq_lightning.app.runs import is_first, leaves, record_of
from deq_lightning.callbacks import EquilibriumMonitor
from deq_lightning.callbacks.record import Record
from deq_lightning.files import replacing
from deq_lightning.tasks import ImplicitTask


class Results(Callback):
    """Times a fit, and writes its figures, curves, settings, versions and hardware into the folder of the run.

    Args:
        folder: of the run. None: nothing is written.
        report: whether a page with pictures is written as well.
    """

    def __init__(self, folder: Path | None, report: bool = False) -> None:
        self.folder = folder
        self.report = report
        self._cost: Cost | None = None
        self._residuals: list[Any] = []
        self._began = self._seconds = self._earlier = 0.0
        self._first = self._untimed = self._steps = 0
        self._figures: dict[str, float | None] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds that the run has taken so far, of every start."""
        return {"seconds": self._earlier + time.monotonic() - self._began if self._began else self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._earlier = state["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        del pl_module
        forget_peak(trainer)
        self._began, self._first = time.monotonic(), trainer.global_step
        self._untimed = 0 if self._earlier else self._first  # steps before this start whose time is not known

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the operations of the first batch."""
        del outputs, batch_idx
        if self._cost is None and self.folder is not None and isinstance(pl_module, ImplicitTask):
            with trainer.precision_plugin.forward_context():
                self._cost = cost_of(pl_module, batch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what a test would overwrite."""
        del pl_module
        self._seconds, self._steps = self._earlier + time.monotonic() - self._began, trainer.global_step
        self._figures, self._residuals = _figures(trainer, "val_"), _record(trainer).curves

    def write(self, trainer: pl.Trainer, best: ModelCheckpoint) -> None:
        """Write the files, over those of an earlier start of the run.

        Args:
            trainer: has fitted, and tested where that is wanted.
            best: wrote the best checkpoint.
        """
        if self.folder is None or not self.folder.is_dir() or not is_first():
            return
        if self._steps == self._first and (self.folder / RESULTS).is_file():
            return  # a run that was complete
        score, steps = best.best_model_score, max(self._steps - self._untimed, 1)
        tested = _figures(trainer, "test_")
        found = {
            "monitor": best.monitor,
            "mode": best.mode,
            "best": None if score is None else score.item(),
            "checkpoint": Path(best.best_model_path).name or None,
            "val": self._figures,
            "test": tested,
            "epochs": trainer.current_epoch,
            "steps": self._steps,
            "seconds": round(self._seconds, 2),  # validations included
            "seconds_per_step": round(self._seconds / steps, 5),
            "parameters": sum(one.numel() for one in trainer.lightning_module.parameters()),
            "peak_memory_mib": peak_memory(trainer),
            **self._operations(tested),
            "hardware": _hardware(trainer),
            "versions": {
                "deq_lightning": deq_lightning.__version__,
                "torch": torch.__version__,
                "lightning": pl.__version__,
                "python": platform.python_version(),
            },
            "settings": record_of(self.folder),
            "solver_steps": _record(trainer).steps,
            "residuals": self._residuals,
        }
        with replacing(self.folder / RESULTS, "w") as file:
            file.write(json.dumps(found, indent=2, default=str) + "\n")
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for board in boards:
            _write_settings(board, found)
            board.save()
            _write_curves(self.folder / METRICS, Path(board.log_dir))
        if self.report:
            for picture in write_report(self.folder):
                for board in boards:
                    board.experiment.add_image(
                        f"report/{picture.stem}", _pixels(picture), self._steps, dataformats="HWC"
                    )

    def _operations(self, tested: dict[str, float | None]) -> dict[str, float]:
        """Return the millions of operations of a cell's evaluation, and of a sample with the steps that it took.

        Those of the test, or of the validation where there is none, or several test sets whose samples differ in size.
        """
        if self._cost is None:
            return {}
        steps = tested.get("test_solver_steps") or self._figures.get("val_solver_steps") or 0.0
        whole = self._cost.once + self._cost.evaluation * steps
        return {"mflops_per_evaluation": self._cost.evaluation / 1e6, "mflops_per_sample": whole / 1e6}


def _record(trainer: pl.Trainer) -> Record:
    """Return what the monitor has kept."""
    monitors = (one for one in trainer.callbacks if isinstance(one, EquilibriumMonitor))  # type: ignore[attr-defined]
    return next((one.record for one in monitors), Record())


def _write_settings(board: TensorBoardLogger, found: dict[str, Any]) -> None:
    """Let TensorBoard's table of settings have those of the run, with what it has come to."""
    figures = {found["monitor"]: found["best"], **found["test"]}
    reached = {f"{REACHED}{name}": value for name, value in figures.items() if value is not None}
    board.log_hyperparams(dict(leaves(found["settings"])), reached, step=found["steps"])


def _pixels(picture: Path) -> Any:
    from matplotlib.image import imread

    return imread(picture)


def _write_curves(path: Path, events: Path) -> None:
    """Write the curves as a table."""
    rows = curves_of(events)
    with replacing(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(["step", *(name for row in rows for name in row)])))
        writer.writeheader()
        writer.writerows(rows)


def _figures(trainer: pl.Trainer, prefix: str) -> dict[str, float | None]:
    """Return the figures of a split; None for what is not finite, which JSON has no word for."""
    found = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _hardware(trainer: pl.Trainer) -> dict[str, Any]:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device.type,
        "name": name,
        "devices": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": trainer.precision,
    }
