"""MNIST, SVHN and CIFAR-10, read through torchvision."""

import copy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from sklearn.model_selection import train_test_split
from torch.utils.data import Subset
from torchvision import datasets, transforms

from deq_lightning.configured import check_at_least
from deq_lightning.data.base import DatasetNotFoundError, ImageDataModule, SeededDraws, SplitError

CLASSES = 10
# what torchvision raises on files that are missing, cut short, or not what their name says
UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, TypeError, AssertionError)


class TorchvisionImages(ImageDataModule):
    """Base of the data modules on torchvision's datasets; a subclass names the dataset and its statistics.

    Args:
        root: folder that holds the dataset, laid out as torchvision does.
        download: whether to fetch what is missing under `root`.
        val_size: training images set aside for validation, 10 or more, in the proportions of the classes.
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
    files: ClassVar[tuple[str, ...]]  # under `root`
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    splits: ClassVar[tuple[dict[str, Any], dict[str, Any]]] = ({"train": True}, {"train": False})  # training, test
    labels: ClassVar[str] = "targets"

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        val_size: int = 5000,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_at_least(CLASSES, val_size=val_size)
        self.root = root
        self.download = download
        self.val_size = val_size
        self.augmentation: list[Any] = []

    def prepare_data(self) -> None:
        """Download what is missing if allowed, and read both splits, so that a bad file stops the run at its start."""
        for split in self.splits:
            self._load(split, download=self.download)

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that `stage` needs, or all of them for None."""
        training, test = self.splits
        if stage in ("fit", "validate", None):
            self._set_train_and_val(self._load(training))
        if stage in ("test", "predict", None):
            self.test_set = self._load(test)

    def _set_train_and_val(self, full: datasets.VisionDataset) -> None:
        if self.val_size > len(full) - CLASSES:
            raise SplitError(
                f"`val_size` must leave {CLASSES} of the {len(full)} training images to train on, got {self.val_size}. "
                f"Type `--data.val_size {max(CLASSES, len(full) // 10)}`."
            )
        train, val = train_test_split(
            np.arange(len(full)), test_size=self.val_size, stratify=getattr(full, self.labels), random_state=self.seed
        )
        self.train_set = Subset(full, train.tolist())
        self.val_set = Subset(full, val.tolist())
        if self.augmentation:
            augmented = copy.copy(full)  # the same images in memory, another transform
            augmented.transform = transforms.Compose([*self.augmentation, full.transform])
            self.train_set = SeededDraws(Subset(augmented, train.tolist()), self.seed)

    def _load(self, split: dict[str, Any], download: bool = False) -> datasets.VisionDataset:
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(self.mean, self.std)])
        try:
            return self.dataset(self.root, transform=transform, download=download, **split)
        except UNREADABLE as error:
            raise DatasetNotFoundError(self._explain(error, download)) from error

    def _explain(self, error: Exception, download: bool) -> str:
        name, root = type(self).__name__, Path(self.root)
        elsewhere = "or `--data.root PATH` to name the folder that holds it."
        missing = [file for file in self.files if not (root / file).is_file()]
        # One line of it, without the advice that torchvision adds on a flag that is not ours.
        cause = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].strip(" .:")
        if missing and download:
            return f"`{name}` could not be downloaded to `{root}/` ({cause}). Type the command again, {elsewhere}"
        if missing:
            return (
                f"`{name}` was not found under `{root}/` (expected `{root / missing[0]}`). "
                f"Type `--data.download true` to fetch it, {elsewhere}"
            )
        own = " ".join(dict.fromkeys(f"`{root / Path(file).parts[0]}`" for file in self.files))
        return (
            f"`{name}` under `{root}/` is damaged or cut short ({cause}). "
            f"Delete {own} and type `--data.download true` to fetch it again, {elsewhere}"
        )


class MNIST(TorchvisionImages):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, (1, 28, 28), normalised.

    References:
        LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998.
    """

    dataset = datasets.MNIST
    files = (
        "MNIST/raw/train-images-idx3-ubyte",
        "MNIST/raw/train-labels-idx1-ubyte",
        "MNIST/raw/t10k-images-idx3-ubyte",
        "MNIST/raw/t10k-labels-idx1-ubyte",
    )
    mean = (0.1307,)
    std = (0.3081,)


class SVHN(TorchvisionImages):
    """SVHN: 73,257 training and 26,032 test images of house numbers, (3, 32, 32), normalised; without the extra split.

    References:
        Netzer et al., "Reading digits in natural images with unsupervised feature learning", 2011. For non-commercial
        use.
    """

    dataset = datasets.SVHN
    files = ("train_32x32.mat", "test_32x32.mat")
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)
    splits = ({"split": "train"}, {"split": "test"})
    labels = "labels"


class CIFAR10(TorchvisionImages):
    """CIFAR-10: 50,000 training and 10,000 test images of ten kinds of objects, (3, 32, 32), normalised.

    Args:
        root: folder that holds the dataset, laid out as torchvision does.
        augment: whether training images are shifted by up to 4 pixels and flipped left to right at random; validation
            and test images never are.
        options: those of `TorchvisionImages`.

    References:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """

    dataset = datasets.CIFAR10
    files = (
        *(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        "cifar-10-batches-py/test_batch",
        "cifar-10-batches-py/batches.meta",
    )
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)

    def __init__(self, root: str = "data", augment: bool = False, **options: Any) -> None:
        super().__init__(root, **options)
        self.augment = augment
        if augment:
            self.augmentation = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
