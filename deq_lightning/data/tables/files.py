"""Arrays in files, mapped into memory where the file allows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deq_lightning.data.errors import DataError, DatasetNotFoundError, brief

NAMES = [f"{kind}{split}" for split in ("", "_train", "_val", "_test") for kind in "xy"]


class Stored:
    """An array, which goes to other processes as the name of its file where it has one of its own.

    Args:
        source: the array, or the path of an .npy file, which is mapped into memory and never read as a whole.
    """

    def __init__(self, source: np.ndarray | Path) -> None:
        self.path = source if isinstance(source, Path) else None
        self.array = _mapped(source) if isinstance(source, Path) else source

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.array if self.path is None else self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def open_arrays(path: Path) -> dict[str, Stored]:
    """Return the arrays of an .npz file or of a folder of .npy files, by their names.

    Raises:
        DatasetNotFoundError: if there is nothing, or it cannot be read.
        DataError: if there are no arrays of those names.
    """
    if path.is_dir():
        arrays = {name: Stored(path / f"{name}.npy") for name in NAMES if (path / f"{name}.npy").is_file()}
    elif path.is_file():
        arrays = {name: Stored(array) for name, array in _unpacked(path).items()}
    else:
        raise DatasetNotFoundError(
            f"there is no `{path}`. Set `path=PATH` to an .npz file, or to a folder with x.npy and y.npy."
        )
    _check_names(path, arrays)
    return arrays


def _check_names(path: Path, arrays: Mapping[str, Stored]) -> None:
    if ("x" in arrays) == ("x_train" in arrays):
        got = ", ".join(f"`{name}`" for name in arrays) or "none of them"
        raise DataError(f"`{path}` must have arrays `x` and `y`, or `x_train` and `y_train`, got {got}. Rename yours.")
    whole = "x" in arrays
    for name in arrays:
        twin = {"x": "y", "y": "x"}[name[0]] + name[1:]
        if twin not in arrays:
            raise DataError(f"`{path}` must have `{twin}` beside `{name}`. Add it.")
        if whole and "_" in name:
            raise DataError(f"`{path}` must not have both `x` and `{name}`. Leave one out.")


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # whatever reading a damaged file may raise
        raise _unreadable(path, error) from error


def _unpacked(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in NAMES if name in file.files}
    except Exception as error:  # whatever reading a damaged file may raise
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"`{path}` cannot be read, it is damaged or holds no plain numbers ({brief(error)}). Save it again with NumPy."
    )
