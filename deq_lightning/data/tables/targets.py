"""What an array of targets means."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deq_lightning.data.errors import DataError, SplitError
from deq_lightning.data.tables.scaling import check_finite

Meaning = Literal["classes", "numbers", "labels"]
WANTED = (
    "whole numbers (rows,), a class each; decimals (rows,) or (rows, targets), numbers to predict; or 0 and 1 "
    "(rows, labels), several labels each"
)


class Targets(NamedTuple):
    """Targets of rows.

    Attributes:
        meaning: classes, numbers to predict, or labels of 0 and 1.
        size: how many classes, numbers per row, or labels there are.
    """

    meaning: Meaning
    size: int


def meaning_of(y: np.ndarray, name: str) -> Meaning:
    """Return what an array of targets means.

    Raises:
        DataError: if it means nothing known.
    """
    if y.dtype.kind == "f" and y.ndim in (1, 2):
        check_finite(y, np.arange(len(y)), name)
        return "numbers"
    if y.dtype.kind in "biu" and y.ndim == 1:
        if y.min() < 0:
            raise DataError(f"`{name}` must be classes numbered from 0, got {y.min()}. Number them anew.")
        return "classes"
    if y.dtype.kind in "biu" and y.ndim == 2 and ((y == 0) | (y == 1)).all():
        return "labels"
    raise DataError(f"`{name}` must be {WANTED}; got {y.dtype} {y.shape}.")


def described(ys: Mapping[str, np.ndarray]) -> Targets:
    """Return what the arrays of targets mean, by their names.

    Raises:
        DataError: if they mean different things.
    """
    meanings = {name: meaning_of(y, name) for name, y in ys.items()}
    first = next(iter(ys))
    for name, y in ys.items():
        if meanings[name] != meanings[first] or y.shape[1:] != ys[first].shape[1:]:
            raise DataError(
                f"`{name}` must be as `{first}`, {ys[first].dtype} {ys[first].shape}, got {y.dtype} {y.shape}."
            )
    if meanings[first] != "classes":
        return Targets(meanings[first], 1 if ys[first].ndim == 1 else ys[first].shape[1])
    highest = max(int(y.max()) for y in ys.values())
    if highest >= sum(map(len, ys.values())):
        raise DataError(f"the classes must be numbered from 0 without a gap, got {highest}. Number them anew.")
    return Targets("classes", highest + 1)


def check_learnable(targets: Targets, training: np.ndarray) -> None:
    """Raise a DataError unless the training rows show every class, or numbers that vary."""
    values = training.reshape(len(training), -1)
    if targets.meaning == "classes" and len(missing := np.setdiff1d(np.arange(targets.size), training)):
        raise SplitError(f"the training rows must have every class, got none of {missing[0]}. Number the classes anew.")
    if targets.meaning != "labels" and (values == values[:1]).all(axis=0).any():
        raise DataError(f"the targets must vary over the training rows, got {values[0].tolist()} in all of them.")


def as_tensor(y: np.ndarray, meaning: Meaning) -> Tensor:
    """Return targets as the tasks take them: classes (rows,), numbers and labels (rows, count)."""
    if meaning == "classes":
        return torch.as_tensor(y.astype(np.int64))
    return torch.as_tensor(y.reshape(len(y), -1).astype(np.float32))
