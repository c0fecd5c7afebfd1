"""The base class of data modules that read their images through torchvision."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms

from deq_lightning.data.base import DataModule, Size, check_sizes, samples_in
from deq_lightning.data.errors import DatasetNotFoundError, SplitError
from deq_lightning.data.images.unlabelled import fixed_view, image_inputs
from deq_lightning.data.inputs import NewInputs
from deq_lightning.data.order import SeededDraws
from deq_lightning.samples import IMAGES, Samples


class TorchvisionImages(DataModule):
    """Base class of data modules for torchvision's datasets; subclasses set the dataset and its statistics.

    Args:
        root: folder that holds the dataset, laid out as torchvision does.
        download: whether to fetch what is missing under `root`.
        val_size: training images set aside for validation, in the proportions of the classes: their number, as many as
            there are classes or more, or their share, in (0, 1).
        train_size: training images used, likewise. None: all that are left.
        test_size: test images used, likewise. None: all.
        augmentation: torchvision's random transforms, applied in this order to training images as tensors of values
            in [0, 1], before they are normalised.
        augment_test: whether test images get them too, as in the code of the JFB paper for CIFAR-10; not for results of
            your own.
        validate_on_test: whether to train on all training images and select the model on the test images, as most
            published results were; not for results of your own.
        batch_size: training images per step and device, 1 or more.
        eval_batch_size: images per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that load images; by default one less than the cores of each device, at least 1 and at
            most 8.
        seed: fixes the splits and the order of the training images, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `prepare_data` and `setup`, if the files are missing or damaged.
    """

    dataset: ClassVar[type[datasets.VisionDataset]]
    shape: ClassVar[tuple[int, int, int]]
    classes: ClassVar[int] = 10
    files: ClassVar[tuple[str, ...]]  # under `root`
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    splits: ClassVar[tuple[dict[str, Any], dict[str, Any]]] = ({"train": True}, {"train": False})  # training, test
    labels: ClassVar[str] = "targets"

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        val_size: Size = 5000,
        train_size: Size | None = None,
        test_size: Size | None = None,
        augmentation: list[nn.Module] | None = None,
        augment_test: bool = False,
        validate_on_test: bool = False,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_sizes(self.classes, val_size=val_size, train_size=train_size, test_size=test_size)
        self.root = root
        self.download = download
        self.val_size = val_size
        self.train_size = train_size
        self.test_size = test_size
        self.augmentation = list(augmentation or [])
        self.augment_test = augment_test
        self.validate_on_test = validate_on_test

    @property
    def samples(self) -> Samples:
        """Description of the images."""
        channels, *size = self.shape
        return Samples(IMAGES, channels=channels, size=(size[0], size[1]), classes=self.classes)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, where torchvision has them."""
        images: Any = self.train_set if self.test_set is None else self.test_set
        while hasattr(images, "dataset"):  # parts and augmentations are wrapped around it
            images = images.dataset
        return getattr(images, "classes", None)

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the channels."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return mean, std

    def prepare_data(self) -> None:
        """Download missing files if allowed, and read both splits, so that a bad file stops the run at its start."""
        for split in self.splits:
            self._load(split, download=self.download)

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that `stage` needs, or all of them for None."""
        training, test = self.splits
        if stage in ("test", "predict", None) or self.validate_on_test:
            self.test_set = self._part(self._load(test), self.test_size, self.augment_test)
        if stage in ("fit", "validate", None):
            self._set_train_and_val(self._load(training))

    def inputs(self, path: str) -> NewInputs:
        """Return the images at a path, brought to the size of the dataset's; or an array of tensors."""
        return image_inputs(self, path, fixed_view(self.shape, self.mean, self.std), self.shape)

    @property
    def departures(self) -> list[str]:
        """Choices that compromise results on this data, in words."""
        selected = ["the model is selected on the test images"] if self.validate_on_test else []
        return selected + (["the test images are augmented"] if self.augment_test else [])

    def _set_train_and_val(self, full: datasets.VisionDataset) -> None:
        if self.validate_on_test:
            self.train_set, self.val_set = self._part(full, self.train_size, augment=True), self.test_set
            return
        val_size = samples_in(self.val_size, len(full))
        train_size = None if self.train_size is None else samples_in(self.train_size, len(full), math.floor)
        for name, size in {"val_size": val_size, "train_size": train_size}.items():
            if size is not None and size < self.classes:
                raise SplitError(
                    f"`{name}` must stand for {self.classes} images or more, one of each class, got {size} of the "
                    f"{len(full)} training images. Set `{name}={max(self.classes, len(full) // 10)}`."
                )
        if len(full) - val_size < (train_size or self.classes):
            wanted = f"the {train_size} of `train_size`" if train_size else str(self.classes)
            advice = max(self.classes, len(full) // 10)
            raise SplitError(
                f"`val_size` must leave {wanted} of the {len(full)} training images to train on, got {val_size}. "
                f"Set `val_size={advice}`."
            )
        train, val = train_test_split(
            np.arange(len(full)),
            train_size=train_size,
            test_size=val_size,
            stratify=getattr(full, self.labels),
            random_state=self.seed,
        )
        self.train_set, self.val_set = self._rows(full, train, augment=True), self._rows(full, val, augment=False)

    def _part(self, full: datasets.VisionDataset, size: Size | None, augment: bool) -> Dataset[Any]:
        """Return `size` images in the proportions of the classes, or all of them."""
        rows = np.arange(len(full))
        if size is not None:
            size = samples_in(size, len(full), math.floor)
            if not self.classes <= size <= len(full) - self.classes:
                raise SplitError(
                    f"a part of the {len(full)} images must have {self.classes} images and leave out {self.classes}, "
                    f"got {size}. Leave the size out to use all."
                )
            labels = getattr(full, self.labels)
            rows, _ = train_test_split(rows, train_size=size, stratify=labels, random_state=self.seed)
        return self._rows(full, rows, augment)

    def _rows(self, full: datasets.VisionDataset, rows: np.ndarray, augment: bool) -> Dataset[Any]:
        if not augment or not self.augmentation:
            return Subset(full, rows.tolist())
        augmented = copy.copy(full)  # the same images in memory, another transform
        augmented.transform = self._transform(self.augmentation)
        return SeededDraws(Subset(augmented, rows.tolist()), self.seed)

    def _transform(self, augmentation: Sequence[nn.Module] = ()) -> transforms.Compose:
        return transforms.Compose([transforms.ToTensor(), *augmentation, transforms.Normalize(self.mean, self.std)])

    def _load(self, split: dict[str, Any], download: bool = False) -> datasets.VisionDataset:
        try:
            images = self.dataset(self.root, transform=self._transform(), download=download, **split)
            self._check(images)
        except Exception as error:  # whatever torchvision raises on files that are missing or damaged
            raise DatasetNotFoundError(self._explain(error, download)) from error
        return images

    def _check(self, images: datasets.VisionDataset) -> None:
        """Raise a ValueError unless the images have the known shape, and a class each, of the known ones."""
        labels = np.asarray(getattr(images, self.labels))
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images have {len(labels)} labels")
        if (shape := tuple(images[0][0].shape)) != self.shape:
            raise ValueError(f"images must be {self.shape}, got {shape}")
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(f"labels must be 0 to {self.classes - 1}, got {labels.min()} to {labels.max()}")
        counts = np.bincount(labels, minlength=self.classes)
        if counts.min() < 2:
            raise ValueError(f"every class must have 2 images or more, {counts.argmin()} has {counts.min()}")

    def _explain(self, error: Exception, download: bool) -> str:
        name, root = type(self).__name__, Path(self.root)
        elsewhere = "or `root=PATH` to name the folder that holds it."
        missing = [file for file in self.files if not (root / file).is_file()]
        # One line, without torchvision's advice on a flag that is not ours.
        cause = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].strip(" .:")
        if missing and download:
            return f"`{name}` could not be downloaded to `{root}/` ({cause}). Try again, {elsewhere}"
        if missing:
            return (
                f"`{name}` was not found under `{root}/` (expected `{root / missing[0]}`). "
                f"Set `download=True` to fetch it, {elsewhere}"
            )
        own = " ".join(dict.fromkeys(f"`{root / Path(file).parts[0]}`" for file in self.files))
        return (
            f"`{name}` under `{root}/` is damaged or cut short ({cause}). "
            f"Delete {own} and set `download=True` to fetch it again, {elsewhere}"
        )
