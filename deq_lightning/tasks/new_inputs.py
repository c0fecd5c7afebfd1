"""New inputs by their path, for a task that is used in Python."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from deq_lightning.tasks.hparams import made_of
from deq_lightning.trust import foreign_names, unfolded


@dataclass
class TrainedOn:
    """What a checkpoint knows of the data of its training.

    Attributes:
        recipe: class path and arguments of the data module. None: they were no plain data.
        states: of a checkpoint, by the name of a class.
        trusted: whether the recipe may name classes of others.
    """

    recipe: Any
    states: Mapping[str, Any]
    trusted: bool

    def module(self) -> Any:
        """Return the data module as it was; its samples need not be there.

        Raises:
            ValueError: if the checkpoint does not say how it is made, or names a class of others, or one that reads no
            new inputs.
        """
        if not isinstance(self.recipe, Mapping):
            raise ValueError(
                "the checkpoint does not say how the data of its training is made. Pass `predict` the inputs "
                "themselves, as `inputs(path)` of that data module prepares them."
            )
        for key, name in () if self.trusted else foreign_names(unfolded(self.recipe)):
            raise ValueError(
                f"the checkpoint names {name} as `data.{key}`, which is not of this program. If you trust it, call "
                "`deq_lightning.load(path, trust_config=True)`."
            )
        data = made_of(pl.LightningDataModule, self.recipe)
        if state := self.states.get(type(data).__qualname__):
            data.load_state_dict(state)
        if not hasattr(data, "inputs"):
            raise ValueError(
                f"`{type(data).__name__}` must have `inputs(path)` to read new inputs. Derive `Described`."
            )
        return data


def answer_files(task: Any, path: str | Path) -> dict[str, Any]:
    """Return the table of a task's predictions for what lies at a path; what cannot be read is left out with a warning.

    Args:
        task: a task that `deq_lightning.load` has made.
        path: as `predict --inputs` takes it.

    Raises:
        ValueError: if the task does not know the data of its training.
        DataError: if there is nothing at the path that can be used.
    """
    if task.trained_on is None:
        raise ValueError("a path is for a task that `deq_lightning.load` has made. Pass the inputs themselves.")
    found: Any = task.trained_on.module().inputs(str(path))
    tables = [task.predict(batch) for batch in found.predict_dataloader()]
    for fault in found.faults:
        warnings.warn(f"left out: {fault}", stacklevel=3)
    return {"file": [found.names[number] for number in found.taken]} | _joined(tables)


def _joined(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Return tables below one another."""
    columns = {name: [table[name] for table in tables] for name in tables[0]}
    return {
        name: torch.cat(parts) if isinstance(parts[0], Tensor) else [entry for part in parts for entry in part]
        for name, parts in columns.items()
    }
