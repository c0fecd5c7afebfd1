"""Image files of any kind as tensors of one kind."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from deq_lightning.data.errors import DataError
from deq_lightning.data.images.files import with_image

GREY = ("1", "L", "LA", "La")
DEEPEST = 2**16 - 1  # value of white in an image of 16 bits
COUNTED = 2000  # training images of which mean and standard deviation are taken


class Header(NamedTuple):
    """What an image file says of itself: height and width in pixels, and 1 channel of grey or 3 of colour."""

    size: tuple[int, int]
    channels: int


def header_of(path: str) -> Header:
    """Return what an image file says of itself, without reading its pixels.

    Raises:
        DataError: if it cannot be read, or has values whose range is not known.
    """
    return with_image(path, lambda image: Header((image.height, image.width), _channels(image, path)))


def _channels(image: Image.Image, path: str) -> int:
    if image.mode in ("I", "F") and not _is_deep(image):
        raise DataError(f"`{path}` has 32 bits a pixel, of no known range. Save it with 8 or 16 bits.")
    return 1 if image.mode in GREY or _is_deep(image) else 3


def _is_deep(image: Image.Image) -> bool:
    """Say whether an image is grey in 16 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def survey(paths: Iterable[str], root: str, image_size: int | None) -> Header:
    """Return the size and the channels to which all images can be brought.

    Raises:
        DataError: if one cannot be read, or `image_size` is None and the images differ in size; names them.
    """
    sizes: dict[tuple[int, int], str] = {}
    channels = 1
    for path in paths:
        header = header_of(path)
        sizes.setdefault(header.size, path)
        channels = max(channels, header.channels)
    if image_size is not None:
        return Header((image_size, image_size), channels)
    if len(sizes) > 1:
        small, large = (pick(sizes, key=math.prod) for pick in (min, max))
        raise DataError(
            f"the images in `{root}` have {len(sizes)} sizes, from {_shown(small)} (`{sizes[small]}`) to "
            f"{_shown(large)} (`{sizes[large]}`) pixels. Set `image_size=N`, such as {min(small)}, to resize them: the "
            "shorter side becomes N pixels, and the center is used."
        )
    return Header(next(iter(sizes)), channels)


def _shown(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


class View:
    """How evaluation sees image files: `view(path)` is a normalised tensor, (channels, height, width).

    Args:
        header: size and channels of the tensors.
        resize: whether to bring the shorter side to the size and to crop the center, rather than to refuse images of
            another size.
        files: training images. Mean and standard deviation of each channel are taken of 2,000 of them, evenly spread,
            or of all if there are fewer, when first needed.
        moments: mean and standard deviation of each channel, if they are known.
    """

    def __init__(
        self,
        header: Header,
        resize: bool,
        files: Sequence[str] = (),
        moments: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        self.header = header
        self.resize = resize
        self.files = files
        if moments is not None:
            mean, std = (torch.tensor(values)[:, None, None] for values in moments)
            self.moments = mean, std

    def __call__(self, path: str | Path) -> Tensor:
        """Return the normalised values of an image file."""
        return self.normalise(self.read(path))

    def read(self, path: str | Path) -> Tensor:
        """Return the values of an image file, in [0, 1].

        Raises:
            DataError: if it cannot be read, or is of another size; names it.
        """
        image, size = with_image(path, self._values), self.header.size
        if self.resize:
            return F.center_crop(F.resize(image, min(size), antialias=True), list(size)).clamp(0, 1)
        if image.shape[1:] != size:
            raise DataError(
                f"`{path}` has {_shown(image.shape[1:])} pixels, and the images of the training have {_shown(size)}. "
                "Bring it to that size."
            )
        return image

    def normalise(self, image: Tensor) -> Tensor:
        """Subtract the mean of each channel, and divide by its standard deviation."""
        mean, std = self.moments
        return (image - mean) / std

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (channels, 1, 1); the latter is 1 where all pixels are alike."""
        chosen = self.files[:: math.ceil(len(self.files) / COUNTED)]
        totals = torch.zeros(3, self.header.channels, dtype=torch.float64)
        for values in (self.read(path).double().flatten(1) for path in chosen):
            totals += torch.stack(
                [torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)]
            )
        mean = totals[1] / totals[0]
        variance = totals[2] / totals[0] - mean.square()
        std = torch.where(variance > 1e-12, variance, 1).sqrt()
        return mean.float()[:, None, None], std.float()[:, None, None]

    def _values(self, image: Image.Image) -> Tensor:
        channels = self.header.channels
        _channels(image, str(getattr(image, "filename", "")))  # refuses what has no range
        if _is_deep(image):
            grey = torch.from_numpy(np.asarray(image).astype(np.float32) / DEEPEST)
            return grey.expand(channels, -1, -1)
        return F.to_dtype(F.pil_to_tensor(image.convert("L" if channels == 1 else "RGB")), torch.float32, scale=True)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images from files, with a class each.

    Args:
        files: paths.
        labels: number of the class of each.
        read: returns the tensor of a path.
        transform: of that tensor.
        kept: tensors by path, filled when first read; None to read them anew each time.
    """

    def __init__(
        self,
        files: Sequence[str],
        labels: Sequence[int],
        read: Callable[[str], Tensor],
        transform: Callable[[Tensor], Any],
        kept: dict[str, Tensor] | None,
    ) -> None:
        self.files = files
        self.labels = labels
        self.read = read
        self.transform = transform
        self.kept = kept

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.files[index]
        if self.kept is None:
            return self.transform(self.read(path)), self.labels[index]
        if path not in self.kept:
            self.kept[path] = self.read(path)
        return self.transform(self.kept[path]), self.labels[index]
