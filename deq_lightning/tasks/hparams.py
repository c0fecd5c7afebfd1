"""What of a task's hyper-parameters goes into checkpoints."""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import instantiate_module

from deq_lightning.configured import class_path, described
from deq_lightning.trust import foreign_names, only_plain, unfolded


def save_plain_hyperparameters(task: pl.LightningModule) -> None:
    """Save the plain data among the arguments of the constructor that calls this.

    Checkpoints then load without unpickling code. Runs from the command line keep everything, as class paths and
    numbers; those made in Python are rebuilt with their objects passed again.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attribute 'net' is an instance of `nn.Module`")  # removed below
        task.save_hyperparameters()
    for name in [name for name, value in task.hparams.items() if not _is_plain(value)]:
        task.hparams.pop(name)


def check_hyperparameters(path: Any, cls: type, given: Iterable[str]) -> None:
    """Make sure that the hyper-parameters of a checkpoint name no class of others.

    Args:
        path: of the checkpoint.
        cls: the task that is made of it.
        given: arguments that are not taken from it.

    Raises:
        ValueError: if they do.
    """
    if hasattr(path, "read"):
        position = path.tell()
    with only_plain():
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if hasattr(path, "read"):
        path.seek(position)
    for part in ("hyper_parameters", "hparams", "module_arguments"):
        found = checkpoint.get(part) or {}
        own = {"_class_path": f"{cls.__module__}.{cls.__qualname__}", "_instantiator": INSTANTIATOR}
        settings = {key: value for key, value in found.items() if key not in given and value != own.get(key)}
        for key, name in foreign_names(unfolded(settings)):
            raise ValueError(
                f"the checkpoint names {name} as `{key}`, which is not of this program. If you trust it, call "
                f"`{cls.__name__}.load_from_checkpoint(path, trust_config=True)`."
            )


def recipe(task: pl.LightningModule, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the name of the task's class, and those parts of it that can be described as plain data."""
    found = {"class_path": class_path(type(task))}
    for name, part in parts.items():
        with suppress(ValueError):
            found[name] = described(part)
    return found


def made_of(base: type, settings: Any) -> Any:
    """Return an object of plain settings: the path of a class, or that with the arguments of its constructor.

    Args:
        base: what it is to be an instance of.
        settings: as `described` returns them.
    """
    settings = settings if isinstance(settings, Mapping) else {"class_path": settings}
    return instantiate_module(base, {"_class_path": settings["class_path"], **(settings.get("init_args") or {})})


RECIPE = "made_of"  # in a checkpoint
INSTANTIATOR = "pytorch_lightning.cli.instantiate_module"  # Lightning's own, of every run of the command line


def _is_plain(value: Any) -> bool:
    """Say whether `value` is made of numbers, strings, lists and dictionaries alone."""
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)
