"""Standardising arrays, however large."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deq_lightning.data.errors import DataError

CHUNK_BYTES = 2**21  # that are read at a time
PIXEL_MAX = 255


class Scaling(NamedTuple):
    """What standardises each channel of an array, or each feature of rows.

    Attributes:
        mean: (channels,) of the training rows; of bytes of images, of their values in [0, 1].
        std: likewise; 1 where they are all the same.
    """

    mean: np.ndarray
    std: np.ndarray

    def apply(self, x: np.ndarray, axis: int) -> Tensor:
        """Return an array as a tensor, standardised along its axis of channels."""
        shape = [-1 if dim == axis else 1 for dim in range(x.ndim)]
        return torch.as_tensor(
            (unit(x, axis) - self.mean.reshape(shape)) / self.std.reshape(shape), dtype=torch.float32
        )


class Standard:
    """The scaling of some data, worked out when it is first needed, unless a checkpoint has brought it before.

    Args:
        fit: works it out.
    """

    def __init__(self, fit: Callable[[], Scaling]) -> None:
        self.fit = fit
        self.known: Scaling | None = None

    @property
    def scaling(self) -> Scaling:
        """The scaling."""
        if self.known is None:
            self.known = self.fit()
        return self.known

    def __getstate__(self) -> dict[str, Any]:
        return {"known": self.scaling}  # other processes do not work it out again


def unit(x: np.ndarray, axis: int) -> np.ndarray:
    """Return numbers in double precision, bytes of images, which have two axes behind that of channels, in [0, 1]."""
    is_pixels = x.dtype == np.uint8 and x.ndim == axis + 3
    return x.astype(np.float64) / (PIXEL_MAX if is_pixels else 1)


def check_finite(x: np.ndarray, rows: np.ndarray, name: str) -> None:
    """Raise a DataError that names the first row with a value that is missing or infinite.

    Args:
        x: some rows of an array.
        rows: their numbers.
        name: of the array.
    """
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    if bad.any():
        row = rows[bad.argmax()]
        raise DataError(f"row {row} of `{name}`, counted from 0, must be finite numbers. Repair it or leave it out.")


def fitted(x: np.ndarray, rows: np.ndarray, name: str) -> Scaling:
    """Return the mean and standard deviation of some rows of an array, of which a few are in memory at a time.

    Args:
        x: (rows, channels, ...).
        rows: numbers of those that count, ascending.
        name: of the array.

    Raises:
        DataError: if a value is not finite.

    References:
        Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, Eq. 2.1: merging of chunks.
    """
    count, mean, squares = 0, np.zeros(x.shape[1]), np.zeros(x.shape[1])
    step = max(1, CHUNK_BYTES // max(1, x[:1].nbytes))
    for start in range(0, len(rows), step):
        chunk = unit(x[rows[start : start + step]], axis=1)
        check_finite(chunk, rows[start : start + step], name)
        values = np.moveaxis(chunk, 1, -1).reshape(-1, x.shape[1])
        distance, total = values.mean(axis=0) - mean, count + len(values)
        squares += ((values - values.mean(axis=0)) ** 2).sum(axis=0) + distance**2 * count * len(values) / total
        mean, count = mean + distance * len(values) / total, total
    std = np.sqrt(squares / count)
    return Scaling(mean, np.where(std > 0, std, 1.0))
