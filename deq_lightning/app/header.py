"""The first lines of a run: what really runs, and on what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from deq_lightning.app.runs import say
from deq_lightning.data.base import Described


class Header(Callback):
    """Prints the header of a fit, once the data is set up and its sizes are known.

    Args:
        folder: the run's folder.
        seed: of the run.
        notes: lines of what else is to be known.
    """

    def __init__(self, folder: Path | None, seed: Any = None, notes: Sequence[str] = ()) -> None:
        self.folder = folder
        self.seed = seed
        self.notes = notes

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the header."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        say(_device(trainer) + _seeds(self.seed, getattr(datamodule, "seed", None)))
        say("; ".join(filter(None, [_net(pl_module.net), _sizes(datamodule)])))
        say(_method(pl_module))
        say(f"run: {self.folder}")
        for note in self.notes:
            say(note)
        say_departures(datamodule, pl_module)


def departures(*parts: Any) -> list[str]:
    """Return what makes the results of data and task not comparable."""
    return [departure for part in parts for departure in getattr(part, "departures", [])]


def say_departures(*parts: Any) -> None:
    """Print what makes the results not comparable."""
    for departure in departures(*parts):
        say(f"not comparable: {departure}", flush=True)


def _device(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    name = f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    several = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    return f"device: {several}{name}, precision {trainer.precision}"


def _seeds(seed: Any, of_data: Any) -> str:
    """Say what was seeded with what: weights and dropout, and the splits and the order of the samples."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        return "" if of_data is None else f", data seed {of_data}"
    return f", seed {seed}" if of_data in (None, seed) else f", seed {seed}, data seed {of_data}"


def _net(net: nn.Module) -> str:
    total = sum(parameter.numel() for parameter in net.parameters())
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    return f"net: {type(net).__name__}, {total:,} parameters" + (f", {trained:,} trained" if trained < total else "")


def _sizes(datamodule: Any) -> str:
    """Say how many samples there are, where the data knows."""
    sizes = datamodule.split_sizes() if isinstance(datamodule, Described) else {}
    return f"{datamodule.unit}: " + ", ".join(f"{size:,} {split}" for split, size in sizes.items()) if sizes else ""


def _method(task: Any) -> str:
    models = task.implicit_models()
    if not models:
        return f"gradient: of no effect, because {type(task.net).__name__} has no equilibrium"
    return "; ".join(_named("gradient", models) + _named("solver", models))


def _named(part: str, models: list[Any]) -> list[str]:
    return [f"{part}: {value}" for value in dict.fromkeys(str(getattr(model, part)) for model in models)]
