"""Handwritten digits that come with scikit-learn."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from deq_lightning.configured import at_least, renamed
from deq_lightning.data.base import DataModule, Size, check_sizes, samples_in
from deq_lightning.data.inputs import NewInputs
from deq_lightning.samples import IMAGES, Samples

CLASSES = 10
IMAGES_IN_ALL = 1797
PIXEL_MAX = 16  # load_digits counts the inked pixels of 4x4 blocks


@renamed(val_fraction="val_size", test_fraction="test_size")
class Digits(DataModule):
    """1,797 real handwritten digits of 8x8 pixels, embedded in scikit-learn: nothing to download.

    Images are (1, 8, 8), normalised with the mean and standard deviation of the training pixels. By default 1,167
    images train, 270 validate and 360 test; every split holds the ten classes in the same proportions.

    Args:
        val_size: images that validate: their number, 10 or more, or their share of all, in (0, 1).
        test_size: images that test, likewise; the rest trains.
        batch_size: training images per step and device, 1 or more.
        eval_batch_size: images per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that load images; by default 0, because the images are in memory.
        seed: fixes the splits and the order of the training images, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998.
    """

    in_memory: ClassVar[bool] = True

    def __init__(
        self,
        val_size: Size = 0.15,
        test_size: Size = 0.2,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_sizes(CLASSES, val_size=val_size, test_size=test_size)
        at_least(CLASSES, "Every class has one.", val_size=samples_in(val_size, IMAGES_IN_ALL))
        at_least(CLASSES, "Every class has one.", test_size=samples_in(test_size, IMAGES_IN_ALL))
        if samples_in(val_size, IMAGES_IN_ALL) + samples_in(test_size, IMAGES_IN_ALL) > IMAGES_IN_ALL - CLASSES:
            raise ValueError(
                f"`val_size` + `test_size` must leave {CLASSES} of the {IMAGES_IN_ALL} images to train on, got "
                f"{val_size} + {test_size}."
            )
        self.val_size = val_size
        self.test_size = test_size

    @property
    def samples(self) -> Samples:
        """Description of the images."""
        return Samples(IMAGES, channels=1, size=(8, 8), classes=CLASSES)

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the training pixels; known after `setup`."""
        return self._moments

    def setup(self, stage: str | None = None) -> None:
        """Split and normalise the images, whatever the stage."""
        from sklearn.datasets import load_digits  # takes a second, which only runs that load it spend

        del stage  # all three splits are small
        images, labels = load_digits(return_X_y=True)
        train, val, test = self._split(labels)
        pixels = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / PIXEL_MAX
        mean, std = pixels[train].mean(), pixels[train].std()
        pixels = (pixels - mean) / std
        self._moments = mean.view(1, 1, 1), std.view(1, 1, 1)
        targets = torch.as_tensor(labels)
        self.train_set, self.val_set, self.test_set = (TensorDataset(pixels[i], targets[i]) for i in (train, val, test))

    def inputs(self, path: str) -> NewInputs:
        """Return the images at a path, brought to 8x8 pixels, bright ink on dark ground; or an array of tensors."""
        from deq_lightning.data.images.unlabelled import fixed_view, image_inputs  # torchvision takes seconds

        self.setup()
        return image_inputs(self, path, fixed_view((1, 8, 8), *([one.item()] for one in self._moments)), (1, 8, 8))

    def _split(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from sklearn.model_selection import train_test_split

        rest, test = train_test_split(
            np.arange(len(labels)), test_size=self.test_size, stratify=labels, random_state=self.seed
        )
        val_size = self.val_size
        if isinstance(val_size, float):  # of all images, but taken from the rest
            val_size = val_size * len(labels) / len(rest)
            if isinstance(self.test_size, float):
                val_size = self.val_size / (1 - self.test_size)
        train, val = train_test_split(rest, test_size=val_size, stratify=labels[rest], random_state=self.seed)
        return train, val, test
