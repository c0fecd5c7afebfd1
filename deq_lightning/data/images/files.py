"""The base class of data modules that read image files, with errors that name the file."""

import copy
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from deq_lightning.configured import whole
from deq_lightning.data.base import DataModule, Size, check_sizes, samples_in
from deq_lightning.data.errors import DataError, DatasetNotFoundError, SplitError, brief
from deq_lightning.data.order import SeededDraws

T = TypeVar("T")

# statistics of ImageNet's training images, with which all models of its lineage are trained
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ENLARGED = 2  # the times as high and wide that images become before that is worth a warning


def read_image(path: str | Path, mode: str | None = "RGB") -> Tensor:
    """Return the pixels of an image file as bytes, (channels, height, width).

    Args:
        path: the file.
        mode: Pillow's name of the channels wanted. None: those of the file.

    Raises:
        DatasetNotFoundError: if the file cannot be read; names it.
    """
    # Tensors, because their transforms are faster than those of Pillow's images.
    return with_image(path, lambda image: pil_to_tensor(image if mode is None else image.convert(mode)))


def with_image(path: str | Path, use: Callable[[Image.Image], T]) -> T:
    """Return what `use` makes of an image file.

    Raises:
        DatasetNotFoundError: if the file cannot be read; names it.
    """
    try:
        with Image.open(path) as image:
            return use(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetNotFoundError(
            f"`{path}` is too large an image ({brief(error)}). Save it with fewer pixels, or leave it out."
        ) from error
    except Exception as error:  # whatever reading a damaged file may raise
        raise DatasetNotFoundError(
            f"`{path}` cannot be read, it is damaged or cut short ({brief(error)}). Unpack or copy that file again."
        ) from error


def warn_if_enlarged(name: str, paths: Sequence[str], side: int, argument: Callable[[int], str]) -> None:
    """Warn where resizing invents most of the pixels, which costs their computation and adds nothing to see.

    Args:
        name: of the data module.
        paths: of the images.
        side: length that their shorter sides are brought to, in pixels.
        argument: returns what to set for images of a height, in pixels.
    """
    size = typical_size(paths)
    if size is None or side < ENLARGED * min(size):
        return
    height, width = (round(side * length / min(size)) for length in size)
    rank_zero_warn(
        f"`{name}` enlarges images of {size[0]}x{size[1]} pixels to {height}x{width}, {(side / min(size)) ** 2:.0f} "
        f"times as many. Set `{argument(min(size))}` to compute with those that there are."
    )


def typical_size(paths: Sequence[str], looked_at: int = 9) -> tuple[int, int] | None:
    """Return the height and width, in pixels, of the middle one by area of a few images spread over the list.

    Only their headers are read; a file that cannot be read does not count.
    """
    sizes = []
    for path in paths[:: max(1, len(paths) // looked_at)]:
        try:
            with Image.open(path) as image:
                sizes.append((image.height, image.width))
        except Exception:  # training names the file
            continue
    return sorted(sizes, key=math.prod)[len(sizes) // 2] if sizes else None


class ImageFiles(DataModule):
    """Base class of data modules that read their images from files while training.

    To derive one, implement `_read`, `_groups` and `_augmentation`, and set `groups`. Override `samples` as well to
    describe the images.

    Args:
        root: folder that holds the dataset.
        val_size: training images set aside for validation: their number, 1 or more, or their share, in (0, 1).
        batch_size: training images per step and device, 1 or more.
        eval_batch_size: images per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that load images; by default one less than the cores of each device, at least 1.
        prefetch_factor: batches that each worker loads ahead, 1 or more; set more where the disk is slow at times, at
            the cost of as many batches of memory.
        seed: fixes the splits, the order and the random transforms of the training images, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `prepare_data` and `setup`, if files are missing; from the loaders, if one is
            damaged.
        SplitError: from `setup`, if `val_size` does not fit the dataset.
    """

    max_workers: ClassVar[int | None] = None  # decoding keeps every core busy
    groups: ClassVar[str]  # name of the groups of images, which all splits hold in the same proportions

    def __init__(
        self,
        root: str,
        val_size: Size,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        prefetch_factor: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_sizes(val_size=val_size)
        whole(1, prefetch_factor=prefetch_factor)
        self.root = root
        self.val_size = val_size
        self.prefetch_factor = prefetch_factor

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the channels."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return mean, std

    @abstractmethod
    def _read(self, split: str) -> Any:
        """Return torchvision's dataset of the files of `split`, "train" or "val", with the transform of evaluation."""

    @abstractmethod
    def _groups(self, dataset: Any) -> Sequence[int | str]:
        """Return the group of each image."""

    @abstractmethod
    def _augmentation(self) -> v2.Transform:
        """Return the transform of training images."""

    def prepare_data(self) -> None:
        """List the files of both splits, so that a missing one stops the run at its start."""
        for split in ("train", "val"):
            self._read(split)

    def setup(self, stage: str | None = None) -> None:
        """List the files of the splits that `stage` needs, or of all of them for None."""
        if stage in ("fit", "validate", None):
            evaluated = self._read("train")
            train, val = self._split(self._groups(evaluated))
            augmented = copy.copy(evaluated)  # the same files
            augmented.transform = self._augmentation()
            self.train_set = SeededDraws(Subset(augmented, train), self.seed)
            self.val_set = Subset(evaluated, val)
        if stage in ("test", "predict", None):
            self.test_set = self._read("val")

    def _relative(self, paths: Iterable[str]) -> list[str]:
        return [os.path.relpath(path, Path(self.root).expanduser()) for path in paths]

    def _split(self, groups: Sequence[int | str]) -> tuple[list[int], list[int]]:
        """Return the training images to train on and those to validate with."""
        names, sizes = np.unique(groups, return_counts=True)
        count, lowest = len(groups), len(names)
        if sizes.min() < 2:
            raise SplitError(
                f"each of the {self.groups} under `{self.root}/` must have 2 training images or more, to train and to "
                f"validate, one has {sizes.min()}. Add images to it or leave it out."
            )
        val_size = samples_in(self.val_size, count)
        if not lowest <= val_size <= count - lowest:
            raise SplitError(
                f"`val_size` must be {lowest} to {count - lowest}, because {lowest} {self.groups} share the {count} "
                f"training images; got {val_size}. Set `val_size={max(lowest, count // 25)}`."
            )
        train, val = train_test_split(np.arange(count), test_size=val_size, stratify=groups, random_state=self.seed)
        return train.tolist(), val.tolist()

    def _loader_options(self) -> dict[str, Any]:
        options = super()._loader_options()
        return {**options, "prefetch_factor": self.prefetch_factor if options["num_workers"] else None}
