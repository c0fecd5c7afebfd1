"""Images of your own, in folders or listed in a table."""

import hashlib
import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from deq_lightning.configured import sizes
from deq_lightning.data.base import DataModule, Size, check_sizes
from deq_lightning.data.errors import DataError
from deq_lightning.data.images.files import warn_if_enlarged
from deq_lightning.data.images.layouts import Listing, list_images, split_off
from deq_lightning.data.images.pixels import Header, Pictures, View, survey
from deq_lightning.data.images.unlabelled import image_inputs
from deq_lightning.data.inputs import NewInputs
from deq_lightning.data.order import SeededDraws
from deq_lightning.samples import IMAGES, Samples

HELD = 2**26  # numbers of all images together that are held in memory, 256 MiB


class ImageFolder(DataModule):
    """Your own images: a folder for each class, such as `root/cat/1.png`, or a table of files and labels.

    Images lie at any depth under the folder of their class; with `root/train/cat/1.png` and likewise `val` and `test`
    the splits are yours. Splits that are missing are taken from the training images, in the proportions of the classes;
    `seed` and the names of the files fix them. Grey images have 1 channel, colour 3, and so has a mixture; alpha is
    dropped, and a rotation that a camera has noted is not applied, as in torchvision. Values in [0, 1] are normalised
    with mean and standard deviation of each channel, of the training images (2,000 of them, evenly spread, if there are
    more). These, the size, the channels and the names of the classes are saved in checkpoints, and those of a
    checkpoint are used with it.

    Args:
        root: folder that holds the images.
        labels: table of comma-separated values with columns `file` (path under `root`), `label` and, if wanted, `split`
            (train, val or test); its path from here or from `root`. None: folders are the classes.
        image_size: height and width, in pixels, that images are resized to: the shorter side, and the center is used.
            None: all images have one size, and keep it.
        val_size: images that validate, where there is no such split: their number, or their share of those that are not
            in another split, in (0, 1).
        test_size: images that test, likewise; the rest trains.
        augment: whether training images are shifted at random, by up to an eighth of their size, and flipped left to
            right.
        augmentation: further random transforms of torchvision, applied in this order to training images as tensors of
            values in [0, 1], before they are normalised.
        batch_size: training images per step and device, 1 or more.
        eval_batch_size: images per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that load images; by default 0 if all images fit into 256 MiB, where they are then kept,
            otherwise one less than the cores of each device, at least 1.
        seed: fixes the splits, the order and the random transforms of the training images, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `samples`, `prepare_data` and `setup`, if the images are missing, damaged, or in
            another layout.
        SplitError: from the same, if `val_size` and `test_size` do not fit.
        DataError: from the same, if the images differ in size; from `load_state_dict` and `setup`, if the classes are
            not those of the checkpoint; from the loaders, if an image cannot be read.
    """

    max_workers = None  # decoding keeps every core busy

    def __init__(
        self,
        root: str,
        labels: str | None = None,
        image_size: int | None = None,
        val_size: Size = 0.15,
        test_size: Size = 0.2,
        augment: bool = False,
        augmentation: list[nn.Module] | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_sizes(val_size=val_size, test_size=test_size)
        if image_size is not None:
            sizes(1, image_size=image_size)
        self.root = root
        self.labels = labels
        self.image_size = image_size
        self.val_size = val_size
        self.test_size = test_size
        self.augment = augment
        self.augmentation = list(augmentation or [])
        self._saved: dict[str, Any] | None = None
        self._view: View | None = None

    @cached_property
    def _given(self) -> Listing:
        return list_images(self.root, self.labels)

    @cached_property
    def _images(self) -> Listing:
        return split_off(self._given, self.val_size, self.test_size, self.seed)

    @cached_property
    def _header(self) -> Header:
        paths = [path for split in self._given.values() for path, _ in split]
        return survey(paths, self.root, self.image_size)

    def _files(self, split: str) -> list[str]:
        return [path for path, _ in self._images[split]]

    def _relative(self, split: str) -> list[str]:
        return [os.path.relpath(path, Path(self.root).expanduser()) for path in self._files(split)]

    @property
    def view(self) -> View:
        """How evaluation sees an image file; that of the checkpoint, if one was loaded."""
        if self._view is None:
            resize, saved = self.image_size is not None, self._saved
            if saved is None:
                self._view = View(self._header, resize, self._files("train"))
            else:
                size = (self.image_size, self.image_size) if self.image_size else tuple(saved["size"])
                self._view = View(Header(size, saved["channels"]), resize, moments=(saved["mean"], saved["std"]))
        return self._view

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, sorted; those of the checkpoint, if one was loaded."""
        if self._saved is not None:
            return list(self._saved["classes"])
        return sorted({label for _, label in self._given["train"]})

    @property
    def file_names(self) -> Sequence[str] | None:
        """Path of each test image under `root`."""
        return None if self.test_set is None else self._relative("test")

    @property
    def samples(self) -> Samples:
        """Description of the images, whose headers are read."""
        header = self.view.header
        return Samples(IMAGES, channels=header.channels, size=header.size, classes=len(self.class_names))

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the channels; those of the checkpoint, if one was loaded."""
        return self.view.moments

    def prepare_data(self) -> None:
        """List the files and read their headers, so that a fault stops the run at its start."""
        _ = self._images, self._header
        if self.image_size is not None:
            warn_if_enlarged("ImageFolder", self._files("train"), self.image_size, lambda side: f"image_size={side}")

    def setup(self, stage: str | None = None) -> None:
        """List the images of all splits, whatever the stage."""
        del stage  # nothing is read
        self._check_classes()
        kept: dict[str, Tensor] | None = {} if self._fits else None
        view = self.view
        self.val_set, self.test_set = (self._pictures(split, view.normalise, kept) for split in ("val", "test"))
        changes = self._changes()
        if not changes:
            self.train_set = self._pictures("train", view.normalise, kept)
        else:
            changed = v2.Compose([*changes, view.normalise])
            self.train_set = SeededDraws(self._pictures("train", changed, kept), self.seed)

    def prepare(self, path: str | Path) -> Tensor:
        """Return the tensor of any image file as evaluation sees it, (channels, height, width).

        After `load_state_dict` it needs none of the images under `root`.

        Raises:
            DataError: if the file cannot be read, or is of another size and `image_size` is None; names it.
        """
        return self.view(path)

    def inputs(self, path: str) -> NewInputs:
        """Return the images at a path, as `prepare` does, or an array of such tensors."""
        view = self.view
        _ = view.moments  # once, before there are threads
        return image_inputs(self, path, view, (view.header.channels, *view.header.size))

    def state_dict(self) -> dict[str, Any]:
        """Return what makes tensors and names of images and predictions."""
        view = self.view
        mean, std = (values.flatten().tolist() for values in view.moments)
        return {
            "classes": list(self.class_names),
            "channels": view.header.channels,
            "size": list(view.header.size),
            "mean": mean,
            "std": std,
            "train": self._fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use what was saved in the place of what the files have."""
        self._saved, self._view = state_dict, None
        if self.train_set is not None:
            self.setup()
            if state_dict["train"] != self._fingerprint and self._given.keys() != self._images.keys():
                rank_zero_warn(
                    f"the checkpoint was trained on other files than those that `{self.root}` now trains on: it may "
                    "have seen images that now test. Set `root`, `seed`, `val_size` and `test_size` as they were."
                )

    @property
    def _fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self._relative("train")).encode()).hexdigest()

    def _check_classes(self) -> None:
        here = sorted({label for _, label in self._given["train"]})
        if here != list(self.class_names):
            lost, new = (sorted(set(a) - set(b)) for a, b in ((self.class_names, here), (here, self.class_names)))
            changes = [f"`{name}` is missing" for name in lost[:1]] + [f"`{name}` is new" for name in new[:1]]
            raise DataError(
                f"the checkpoint was trained with {len(self.class_names)} classes, and `{self.root}` has others: "
                f"{' and '.join(changes)}. Set `root=PATH` to name images of the same classes, or train again."
            )

    @property
    def _fits(self) -> bool:
        header, count = self.view.header, sum(map(len, self._images.values()))
        return count * header.channels * math.prod(header.size) <= HELD

    def _pictures(self, split: str, transform: Any, kept: dict[str, Tensor] | None) -> Pictures:
        numbers = {name: number for number, name in enumerate(self.class_names)}
        labels = [numbers[label] for _, label in self._images[split]]
        return Pictures(self._files(split), labels, self.view.read, transform, kept)

    def _changes(self) -> list[Any]:
        height, width = self.view.header.size
        shifts = [v2.RandomCrop((height, width), padding=[width // 8, height // 8]), v2.RandomHorizontalFlip()]
        return [*(shifts if self.augment else []), *self.augmentation]

    def _filled(self, split: str) -> Dataset[Any]:
        dataset = super()._filled(split)
        _ = self.view.moments  # once, before there are workers
        return dataset

    def _workers(self) -> int:
        return 0 if self.num_workers is None and self._fits else super()._workers()
