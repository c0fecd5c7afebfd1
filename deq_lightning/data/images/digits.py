"""Handwritten digits that come with scikit-learn."""

from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import TensorDataset

from deq_lightning.data.base import DataModule
from deq_lightning.samples import IMAGES, Samples

PIXEL_MAX = 16  # load_digits counts the inked pixels of 4x4 blocks


class Digits(DataModule):
    """1,797 real handwritten digits of 8x8 pixels, embedded in scikit-learn: nothing to download.

    Images are (1, 8, 8), normalised with the mean and standard deviation of the training pixels. By default 1,167
    images train, 270 validate and 360 test; every split holds the ten classes in the same proportions.

    Args:
        val_fraction: share of all images that validates, in (0, 1).
        test_fraction: share of all images that tests, in (0, 1); the rest trains.
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
        val_fraction: float = 0.15,
        test_fraction: float = 0.2,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        for name, fraction in {"val_fraction": val_fraction, "test_fraction": test_fraction}.items():
            if not 0 < fraction < 1:
                raise ValueError(f"`{name}` must be in (0, 1), got {fraction}.")
        if not val_fraction + test_fraction < 1:
            raise ValueError(
                f"`val_fraction` + `test_fraction` must be below 1, got {val_fraction} + {test_fraction}: "
                "nothing is left to train on."
            )
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction

    @property
    def samples(self) -> Samples:
        """What the images are."""
        return Samples(IMAGES, channels=1, size=(8, 8), classes=10)

    def setup(self, stage: str | None = None) -> None:
        """Split and normalise the images, whatever the stage."""
        from sklearn.datasets import load_digits  # a second that a start which loads nothing is spared

        del stage  # all three splits are small
        images, labels = load_digits(return_X_y=True)
        train, val, test = self._split(labels)
        pixels = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / PIXEL_MAX
        pixels = (pixels - pixels[train].mean()) / pixels[train].std()
        targets = torch.as_tensor(labels)
        self.train_set, self.val_set, self.test_set = (TensorDataset(pixels[i], targets[i]) for i in (train, val, test))

    def _split(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from sklearn.model_selection import train_test_split

        rest, test = train_test_split(
            np.arange(len(labels)), test_size=self.test_fraction, stratify=labels, random_state=self.seed
        )
        val_share = self.val_fraction / (1 - self.test_fraction)
        train, val = train_test_split(rest, test_size=val_share, stratify=labels[rest], random_state=self.seed)
        return train, val, test
