"""ImageNet, read from its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torchvision import datasets
from torchvision.datasets.folder import is_image_file
from torchvision.transforms import v2

from deq_lightning.configured import above, ascending, listed, sizes, within
from deq_lightning.data.base import Size
from deq_lightning.data.errors import DatasetNotFoundError
from deq_lightning.data.images.files import MEAN, STD, ImageFiles, read_image, warn_if_enlarged
from deq_lightning.data.images.unlabelled import image_inputs
from deq_lightning.data.inputs import NewInputs
from deq_lightning.samples import IMAGES, Samples

MARGIN = 0.875  # share of an evaluated image's shorter side that is used


class ImageNet(ImageFiles):
    """ImageNet (ILSVRC 2012): 1,281,167 training images of a thousand classes, (3, 224, 224), normalised.

    The test split is what ImageNet calls its validation set, 50,000 images, on which every paper reports; validation
    takes `val_size` of the training images, in the proportions of the classes. Training images are cropped, stretched
    and flipped left to right at random; for all others the center is evaluated. Any images laid out in the same way
    will do: `train/CLASS/` and `val/CLASS/` with the same classes.

    Args:
        root: folder that holds `train` and `val`, each with a folder of images for each class.
        image_size: height and width in pixels. Evaluation brings the shorter side to `image_size` / 0.875 first.
        crop_area: lowest and highest share of a training image's area in a random crop, in (0, 1].
        crop_aspect: lowest and highest width of a random crop divided by its height. The defaults of both are the
            usual ones; the phantom-gradient models have 0.1 to 1 and 0.8 to 1.25.
        val_size: training images set aside for validation, their number or share: as many as there are classes or more.
        options: those of `ImageFiles`.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Russakovsky et al., "ImageNet large scale visual recognition challenge", IJCV 115(3), 2015.
    """

    groups = "classes"

    def __init__(
        self,
        root: str = "data/imagenet",
        image_size: int = 224,
        crop_area: tuple[float, float] = (0.08, 1.0),
        crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
        val_size: Size = 10_000,
        **options: Any,
    ) -> None:
        super().__init__(root, val_size, **options)
        sizes(1, image_size=image_size)
        listed(2, crop_area=crop_area, crop_aspect=crop_aspect)
        within("(0, 1]", crop_area=crop_area)
        above(0, crop_aspect=crop_aspect)
        ascending(crop_area=crop_area, crop_aspect=crop_aspect)
        self.image_size = image_size
        self.crop_area = crop_area
        self.crop_aspect = crop_aspect

    @property
    def samples(self) -> Samples:
        """Description of the images; every folder is a class."""
        folder = Path(self.root).expanduser() / "train"
        if not folder.is_dir():
            raise self._error(f"there is no folder `{folder}`")
        classes = sum(entry.is_dir() for entry in folder.iterdir())
        return Samples(IMAGES, channels=3, size=(self.image_size, self.image_size), classes=classes or None)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the folders."""
        images: Any = self.val_set if self.test_set is None else self.test_set
        return getattr(getattr(images, "dataset", images), "classes", None)

    @property
    def file_names(self) -> Sequence[str] | None:
        """Path of each test image under `root`."""
        images = cast(datasets.ImageFolder | None, self.test_set)
        return None if images is None else self._relative(path for path, _ in images.samples)

    def inputs(self, path: str) -> NewInputs:
        """Return the images at a path, as evaluation sees them; or an array of tensors."""
        see = self._evaluation()
        shape = (3, self.image_size, self.image_size)
        return image_inputs(self, path, lambda file: see(read_image(file)), shape)

    def prepare_data(self) -> None:
        """List the files of both splits and compare their classes, so that a fault stops the run at its start."""
        training = self._read("train")
        train, val = set(training.classes), set(self._read("val").classes)
        if train != val:
            lost, held_by = (train - val, "train") if train - val else (val - train, "val")
            raise self._error(f"`{min(lost)}`, one of {len(lost)} such folders, is in `{held_by}` only")
        if len(train) < 2:
            raise self._error(f"there is one class, `{min(train)}`, and two or more are needed")
        paths = [path for path, _ in training.samples]
        warn_if_enlarged("ImageNet", paths, self.image_size, lambda height: f"image_size={height}")

    def _read(self, split: str) -> datasets.ImageFolder:
        folder = Path(self.root).expanduser() / split
        try:
            return datasets.ImageFolder(folder, self._evaluation(), loader=read_image)
        except OSError as error:
            raise self._error(_fault(folder) or str(error)) from error

    def _groups(self, dataset: Any) -> Sequence[int | str]:
        return dataset.targets

    def _augmentation(self) -> v2.Transform:
        crop = v2.RandomResizedCrop(self.image_size, self.crop_area, self.crop_aspect)
        return v2.Compose([crop, v2.RandomHorizontalFlip(), *_to_floats()])

    def _evaluation(self) -> v2.Transform:
        resize = v2.Resize(round(self.image_size / MARGIN))
        return v2.Compose([resize, v2.CenterCrop(self.image_size), *_to_floats()])

    def _error(self, fault: str) -> DatasetNotFoundError:
        root = Path(self.root)
        unpack = f"from torchvision.datasets import ImageNet; [ImageNet('{root}', one) for one in ('train', 'val')]"
        return DatasetNotFoundError(
            f"`ImageNet` needs images in `{root}/train/CLASS/` and `{root}/val/CLASS/`, of the same classes; {fault}. "
            "Set `root=PATH` to name the folder that holds them, or put ILSVRC2012_img_train.tar, "
            "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from https://image-net.org/download into "
            f'`{root}/` and run `python -c "{unpack}"`, which unpacks `train` and `val` where they do not exist.'
        )


def _fault(folder: Path) -> str | None:
    """Return what is wrong with the layout of a split's folder, or None."""
    if not folder.is_dir():
        return f"there is no folder `{folder}`"
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        return f"`{folder}` has no folders, one for each class, in it"
    empty = (one for one in classes if not any(is_image_file(file.name) for file in one.rglob("*")))
    return next((f"`{one}` holds no images" for one in empty), None)


def _to_floats() -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
