"""Arrays of rows or of images in files."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from deq_lightning.configured import is_number
from deq_lightning.data.base import DataModule, Size, check_sizes
from deq_lightning.data.errors import DataError
from deq_lightning.data.inputs import NewInputs, array_inputs
from deq_lightning.data.tables.files import Stored, open_arrays
from deq_lightning.data.tables.scaling import Scaling, Standard, check_finite, fitted
from deq_lightning.data.tables.splits import split
from deq_lightning.data.tables.targets import Targets, as_tensor, check_learnable, described
from deq_lightning.samples import (
    IMAGE_LABELS,
    IMAGE_NUMBERS,
    IMAGES,
    ROW_LABELS,
    ROW_NUMBERS,
    ROWS,
    Samples,
)

KINDS = {"classes": (ROWS, IMAGES), "numbers": (ROW_NUMBERS, IMAGE_NUMBERS), "labels": (ROW_LABELS, IMAGE_LABELS)}
COLOURS = (1, 3, 4)  # channels of most images


class Part(Dataset[tuple[Tensor, Tensor]]):
    """Some rows of an array, each read when it is asked for.

    Args:
        name: of the array.
        x: the array.
        y: targets of all its rows.
        rows: numbers of those that belong to the part.
        standard: standardises them.
    """

    def __init__(self, name: str, x: Stored, y: Tensor, rows: np.ndarray, standard: Standard) -> None:
        self.name = name
        self.x = x
        self.y = y
        self.rows = rows
        self.standard = standard

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        x = self.x.array[row]
        check_finite(x[None], self.rows[index : index + 1], self.name)
        return self.standard.scaling.apply(x, axis=0), self.y[row]


class Arrays(DataModule):
    """Your own NumPy arrays: an .npz file, or a folder of .npy files, of which only the rows of a batch are in memory.

    `x` is (rows, features), (rows, channels, length), or images (rows, channels, height, width); bytes of images become
    values in [0, 1]. `y` is whole numbers (rows,), a class each; decimals (rows,) or (rows, targets), numbers to
    predict; or 0 and 1 (rows, labels), several labels each. Arrays `x_train` and `y_train` name the training rows; then
    `x_val`, `y_val`, `x_test` and `y_test` may name the others, which otherwise are taken from the training rows. The
    statistics of the training rows are kept in checkpoints. Values that are not finite are refused.

    Args:
        path: the file or folder.
        normalize: whether every feature, or every channel, is standardised with mean and standard deviation of the
            training rows.
        val_size: rows that validate, unless arrays name them: their number, or their share of all, in (0, 1).
        test_size: rows that test, likewise; the rest trains. In classification every split holds the classes in the
            same proportions.
        batch_size: training rows per step and device, 1 or more.
        eval_batch_size: rows per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that load rows; by default one less than the cores of each device, at least 1 and at most
            8.
        seed: fixes the splits and the order of the training rows, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `samples`, `prepare_data` and `setup`, if there are no such files, or damaged ones.
        DataError: likewise, if the arrays are no such thing; from the loaders, if a value is not finite.
        SplitError: likewise, if the sizes do not fit the arrays.
    """

    unit = "rows"
    target_names: Sequence[str] | None = None

    def __init__(
        self,
        path: str,
        normalize: bool = True,
        val_size: Size = 0.15,
        test_size: Size = 0.2,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_sizes(val_size=val_size, test_size=test_size)
        self.path = Path(path)
        self.normalize = normalize
        self.val_size = val_size
        self.test_size = test_size
        self.standard = Standard(self._fitted)

    @property
    def samples(self) -> Samples:
        """Description of the rows or images."""
        shape, (meaning, size) = self._shape, self._targets
        targets, classes = (size, None) if meaning == "numbers" else (None, size)
        kind = KINDS[meaning][len(shape) == 3]
        if len(shape) == 1:
            return Samples(kind, features=shape[0], classes=classes, targets=targets)
        return Samples(kind, channels=shape[0], size=shape[1:], classes=classes, targets=targets)

    def target_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and standard deviation of each target over the training rows."""
        name, rows = self._rows["train"]
        y = self._ys[_twin(name)][rows].astype(np.float64).reshape(len(rows), -1)
        return y.mean(axis=0).tolist(), y.std(axis=0).tolist()

    def prepare_data(self) -> None:
        """Open the arrays, so that a bad file stops the run at its start."""
        _ = self._shape, self._rows

    def setup(self, stage: str | None = None) -> None:
        """Open all splits, whatever the stage."""
        del stage  # their rows are read when they are asked for
        for part, (name, rows) in self._rows.items():
            y = as_tensor(self._ys[_twin(name)], self._targets.meaning)
            setattr(self, f"{part}_set", Part(name, self._arrays[name], y, rows, self.standard))

    def prepare(self, rows: np.ndarray) -> Tensor:
        """Return new rows, (rows, ...), as the network takes them.

        Raises:
            DataError: if they are of another shape, or not finite.
        """
        if rows.shape[1:] != self._shape:
            raise DataError(f"the rows must be (rows, {str(self._shape)[1:]}, as the arrays are, got {rows.shape}.")
        check_finite(rows, np.arange(len(rows)), "rows")
        return self.standard.scaling.apply(rows, axis=1)

    def inputs(self, path: str) -> NewInputs:
        """Return the rows of an array like those of the training, and prepared as they were."""
        return array_inputs(self, path, self._shape, self.prepare)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics of the training rows, for checkpoints."""
        return {name: value.tolist() for name, value in self.standard.scaling._asdict().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Standardise with the statistics of a checkpoint's training rows.

        Raises:
            DataError: if it has none for these channels.
        """
        values = [state_dict.get(name) for name in Scaling._fields]
        channels = self._shape[0]
        if any(not isinstance(one, list) or len(one) != channels or not all(map(is_number, one)) for one in values):
            raise DataError(f"the checkpoint must have the mean and deviation of {channels} channels. Use another.")
        self.standard.known = Scaling(*map(np.array, values))

    def _filled(self, split: str) -> Dataset[Any]:
        _ = self.standard.scaling  # here, and not by every worker
        return super()._filled(split)

    def _fitted(self) -> Scaling:
        name, rows = self._rows["train"]
        one = np.ones(self._shape[0])
        return fitted(self._arrays[name].array, rows, name) if self.normalize else Scaling(0 * one, one)

    @cached_property
    def _arrays(self) -> Mapping[str, Stored]:
        arrays = open_arrays(self.path)
        for name, stored in arrays.items():
            other = arrays[_twin(name)].array
            if stored.array.ndim == 0 or len(stored.array) != len(other) or not len(other):
                got = f"{np.shape(stored.array)} and {np.shape(other)}"
                raise DataError(
                    f"`{name}` and `{_twin(name)}` of `{self.path}` must have one row or more each, as many, got {got}."
                )
        return arrays

    @cached_property
    def _ys(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(stored.array) for name, stored in self._arrays.items() if name[0] == "y"}

    @cached_property
    def _targets(self) -> Targets:
        return described(self._ys)

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        xs = {name: stored.array for name, stored in self._arrays.items() if name[0] == "x"}
        first = next(iter(xs.values()))
        for name, x in xs.items():
            if x.ndim not in (2, 3, 4) or x.dtype.kind not in "biuf" or x.shape[1:] != first.shape[1:] or 0 in x.shape:
                raise DataError(
                    f"`{name}` must be numbers (rows, features), (rows, channels, length) or (rows, channels, height, "
                    f"width), the same in all splits, got {x.dtype} {x.shape}."
                )
            if x.ndim == 4 and x.shape[1] not in COLOURS and x.shape[3] in COLOURS:
                raise DataError(
                    f"`{name}` must have its channels before height and width, got {x.shape}. Save "
                    f"`{name}.transpose(0, 3, 1, 2)`."
                )
        return first.shape[1:]

    @cached_property
    def _rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Name of the array, and its rows, of each split."""
        name = "x" if "x" in self._arrays else "x_train"
        named = {part: f"x_{part}" for part in ("val", "test") if f"x_{part}" in self._arrays}
        sizes = {"val": self.val_size, "test": self.test_size}
        sizes = {part: size for part, size in sizes.items() if part not in named}
        y = self._ys[_twin(name)]
        labels = y.astype(np.int64) if self._targets.meaning == "classes" and sizes else None
        own = {part: (name, rows) for part, rows in split(len(y), sizes, self.seed, labels).items()}
        check_learnable(self._targets, y[own["train"][1]])
        return own | {part: (one, np.arange(len(self._arrays[one].array))) for part, one in named.items()}


def _twin(name: str) -> str:
    return {"x": "y", "y": "x"}[name[0]] + name[1:]
