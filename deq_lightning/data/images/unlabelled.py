"""Images without labels, for a trained model to answer."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from deq_lightning.data.base import Described
from deq_lightning.data.errors import DatasetNotFoundError
from deq_lightning.data.images.layouts import SUFFIXES
from deq_lightning.data.images.pixels import Header, View
from deq_lightning.data.inputs import ARRAYS, NewInputs, array_inputs


def image_inputs(
    data: Described, path: str, prepare: Callable[[Path], Tensor], shape: Sequence[int] | None
) -> NewInputs:
    """Return the images in a folder, at any depth and in the order of their paths, one image, or those of an array.

    Args:
        data: the data module of the training.
        path: the folder or the file; only a file `.npy` or `.npz` is one of an array, and used as it is.
        prepare: returns the tensor of an image file as evaluation sees it.
        shape: of that tensor.

    Raises:
        DataError: if there is nothing of the kind.
    """
    place = Path(path).expanduser()
    if place.suffix.lower() in ARRAYS and not place.is_dir() and shape is not None:
        return array_inputs(data, path, shape)
    files = _images_in(place) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        fault = f"`{path}` has no images in it ({', '.join(SUFFIXES)})" if place.is_dir() else f"there is no `{path}`"
        raise DatasetNotFoundError(f"{fault}. Name a folder of images, an image, or an array (.npy, .npz).")
    names = [os.path.relpath(file, place) if place.is_dir() else file.name for file in files]
    return NewInputs(data, path, names, lambda number: prepare(files[number]))


def _images_in(folder: Path) -> list[Path]:
    found = (one for one in folder.rglob("*") if one.suffix.lower() in SUFFIXES)
    visible = (one for one in found if not any(part[0] == "." for part in one.relative_to(folder).parts))
    return sorted(one for one in visible if one.is_file())


def fixed_view(shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> View:
    """Return the view that brings images to a shape, and normalises them.

    Args:
        shape: channels, height and width.
        mean: of each channel.
        std: likewise.
    """
    channels, height, width = shape
    return View(Header((height, width), channels), True, moments=(mean, std))
