"""What of a task's hyper-parameters goes into checkpoints."""

import warnings
from typing import Any

import pytorch_lightning as pl


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


def _is_plain(value: Any) -> bool:
    """Say whether `value` is made of numbers, strings, lists and dictionaries alone."""
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)
