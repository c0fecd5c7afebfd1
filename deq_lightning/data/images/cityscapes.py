"""Cityscapes, read from its files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.tv_tensors import Image, Mask

from deq_lightning.configured import ascending, at_least, listed, several_sizes
from deq_lightning.data.base import Size
from deq_lightning.data.errors import DatasetNotFoundError
from deq_lightning.data.images.files import MEAN, STD, ImageFiles, read_image, warn_if_enlarged
from deq_lightning.samples import PIXELS, Samples

HEIGHT = 1024  # of every image; the width is twice that
IGNORED = 255
CLASSES = 19
# What unpacking may raise, and torchvision for folders that are not there.
UNREADABLE = (RuntimeError, OSError, BadZipFile)


def train_ids() -> Tensor:
    """Return the class to train on, 0 to 18 or 255 for none, for every value a label file may hold, (256,)."""
    table = torch.full((256,), IGNORED, dtype=torch.uint8)
    for one in datasets.Cityscapes.classes:
        if not one.ignore_in_eval:
            table[one.id] = one.train_id
    return table


class Scenes(datasets.Cityscapes):
    """Images and the classes of their pixels, in the order of their names, as an `Image` and a `Mask` tensor.

    Args:
        root: folder that holds `leftImg8bit` and `gtFine`.
        split: "train" or "val".
        transform: applied to both together.
    """

    images: list[str]
    targets: list[list[str]]

    def __init__(self, root: Path, split: str, transform: v2.Transform) -> None:
        super().__init__(str(root), split, target_type="semantic", transform=transform)
        pairs = sorted(zip(self.images, self.targets, strict=True))  # torchvision lists them in the order of the disk
        self.images, self.targets = [image for image, _ in pairs], [labels for _, labels in pairs]
        self.table = train_ids()

    def __getitem__(self, index: int) -> Any:
        image = Image(read_image(self.images[index]))
        labels = Mask(self.table[read_image(self.targets[index][0], mode=None)[0].long()])
        return self.transform(image, labels)


class Cityscapes(ImageFiles):
    """Cityscapes: 2,975 street scenes of 1024 x 2048 pixels, each pixel of one of 19 classes or of none (255).

    The test split is what Cityscapes calls its validation set, 500 images of other cities, on which the papers report;
    the labels of its test set are not public. Validation takes `val_size` of the training images, in the proportions
    of the cities: of the same streets, they are easier than the test split. Training images are scaled, cropped
    and flipped left to right at random, all others are whole.

    Args:
        root: folder that holds `leftImg8bit` and `gtFine`, or the two zip files they come in.
        crop_size: height and width of training images in pixels; smaller images are padded with black and 255.
        scale: lowest and highest height of a training image before the crop, divided by 1024; the width scales with it.
        val_size: training images set aside for validation, their number or share: as many as there are training cities
            (18) or more.
        options: those of `ImageFiles`.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. For non-commercial
        use.
    """

    groups = "cities"

    def __init__(
        self,
        root: str = "data/cityscapes",
        crop_size: tuple[int, int] = (512, 1024),
        scale: tuple[float, float] = (0.5, 2.1),
        val_size: Size = 250,
        **options: Any,
    ) -> None:
        super().__init__(root, val_size, **options)
        several_sizes(1, 2, crop_size=crop_size)
        listed(2, scale=scale)
        at_least(1 / HEIGHT, "At that scale an image is one pixel high.", scale=scale)
        ascending(scale=scale)
        self.crop_size = crop_size
        self.scale = scale

    @property
    def samples(self) -> Samples:
        """Description of the scenes; those for training are cropped, the others are whole."""
        return Samples(PIXELS, channels=3, classes=CLASSES)

    @property
    def file_names(self) -> Sequence[str] | None:
        """Path of each test image under `root`."""
        return None if self.test_set is None else self._relative(cast(Scenes, self.test_set).images)

    def prepare_data(self) -> None:
        """List the files of both splits, so that a missing one stops the run at its start."""
        super().prepare_data()
        side = round(HEIGHT * math.sqrt(math.prod(self.scale)))

        def argument(height: int) -> str:
            return f"scale={[float(f'{scale * height / side:.2g}') for scale in self.scale]}"

        warn_if_enlarged("Cityscapes", self._read("train").images, side, argument)

    def _read(self, split: str) -> Scenes:
        root = Path(self.root).expanduser()
        try:
            scenes = Scenes(root, split, v2.Compose(_to_floats()))
        except UNREADABLE as error:
            raise self._error(_missing_folder(root, split) or str(error)) from error
        if not scenes.images:
            raise self._error(f"there are no images under `{scenes.images_dir}`")
        pairs = zip(scenes.images, scenes.targets, strict=True)
        unlabelled = [image for image, (labels,) in pairs if not Path(labels).is_file()]
        if unlabelled:
            raise self._error(f"{len(unlabelled)} images have no labels, the first is `{unlabelled[0]}`")
        return scenes

    def _groups(self, dataset: Any) -> Sequence[int | str]:
        return [Path(image).parent.name for image in dataset.images]

    def _augmentation(self) -> v2.Transform:
        lowest, highest = (round(HEIGHT * scale) for scale in self.scale)
        return v2.Compose(
            [
                v2.RandomResize(lowest, highest + 1),  # of the shorter side; the upper bound is exclusive
                v2.RandomCrop(self.crop_size, pad_if_needed=True, fill={Image: 0, Mask: IGNORED}),
                v2.RandomHorizontalFlip(),
                *_to_floats(),
            ]
        )

    def _error(self, fault: str) -> DatasetNotFoundError:
        root = self.root
        return DatasetNotFoundError(
            f"`Cityscapes` needs `{root}/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and "
            f"`{root}/gtFine/SPLIT/CITY/*_gtFine_labelIds.png` for the splits train and val; {fault}. "
            "Set `root=PATH` to name the folder that holds them, or put leftImg8bit_trainvaltest.zip and "
            f"gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com into `{root}/`; they are unpacked when "
            "a folder of a split does not exist."
        )


def _missing_folder(root: Path, split: str) -> str | None:
    folders = (root / kind / split for kind in ("leftImg8bit", "gtFine"))
    return next((f"there is no folder `{folder}`" for folder in folders if not folder.is_dir()), None)


def _to_floats() -> list[v2.Transform]:
    """Return the transforms that normalise the image and make both plain tensors."""
    types = v2.ToDtype({Image: torch.float32, Mask: torch.int64}, scale=True)
    return [types, v2.Normalize(MEAN, STD), v2.ToPureTensor()]
