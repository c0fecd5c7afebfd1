"""What a run has come to, in files beside its checkpoints."""

import csv
import json
import math
import platform
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

import deq_lightning
from deq_lightning.app.runs import is_first, record_of
from deq_lightning.files import replacing

PROCESS = Path("/proc/self")  # of Linux
RESULTS = "results.json"
METRICS = "metrics.csv"
NO_CURVES = ("hp_metric",)


class Results(Callback):
    """Times a fit, and writes its figures, curves, settings, versions and hardware into the folder of the run.

    Args:
        folder: of the run. None: nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._began = self._seconds = 0.0
        self._first = self._steps = 0
        self._figures: dict[str, float | None] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        del pl_module
        _forget_peak(trainer)
        self._began, self._first = time.monotonic(), trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what a test would overwrite."""
        del pl_module
        self._seconds, self._steps = time.monotonic() - self._began, trainer.global_step
        self._figures = _figures(trainer, "val_")

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
        score, steps = best.best_model_score, max(self._steps - self._first, 1)
        found = {
            "monitor": best.monitor,
            "mode": best.mode,
            "best": None if score is None else score.item(),
            "checkpoint": Path(best.best_model_path).name or None,
            "val": self._figures,
            "test": _figures(trainer, "test_"),
            "epochs": trainer.current_epoch,
            "steps": self._steps,
            "seconds": round(self._seconds, 2),  # of this start, validations included
            "seconds_per_step": round(self._seconds / steps, 5),
            "parameters": sum(one.numel() for one in trainer.lightning_module.parameters()),
            "peak_memory_mib": _peak_memory(trainer),
            "hardware": _hardware(trainer),
            "versions": {
                "deq_lightning": deq_lightning.__version__,
                "torch": torch.__version__,
                "lightning": pl.__version__,
                "python": platform.python_version(),
            },
            "settings": record_of(self.folder),
        }
        with replacing(self.folder / RESULTS, "w") as file:
            file.write(json.dumps(found, indent=2, default=str) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.save()
                _write_curves(self.folder / METRICS, logger.log_dir)


def _write_curves(path: Path, events: str) -> None:
    """Write all that TensorBoard draws, of every start of the run, as a table with a row for each step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(events, size_guidance={"scalars": 0})  # all of them
    read.Reload()
    names = [name for name in read.Tags()["scalars"] if name not in NO_CURVES]
    rows: dict[int, dict[str, float]] = {}
    for name in names:
        for one in read.Scalars(name):
            rows.setdefault(one.step, {"step": one.step})[name] = one.value
    with replacing(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *names])
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))


def _figures(trainer: pl.Trainer, prefix: str) -> dict[str, float | None]:
    """Return the figures of a split; None for what is not finite, which JSON has no word for."""
    found = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _forget_peak(trainer: pl.Trainer) -> None:
    """Let the largest memory be that from here on, where the system can."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone has it
        (PROCESS / "clear_refs").write_text("5")


def _peak_memory(trainer: pl.Trainer) -> int | None:
    """Return the largest memory in MiB: of the GPU, or of the process with all that it has loaded. None: not known."""
    if trainer.strategy.root_device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20)
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", (PROCESS / "status").read_text())
        return round(int(found[1]) / 2**10) if found else None
    return None


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
