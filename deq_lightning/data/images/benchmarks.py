"""MNIST, SVHN, CIFAR-10 and CIFAR-100."""

from pathlib import Path
from typing import Any

from torchvision import datasets, transforms

from deq_lightning.data.images.torchvision_images import TorchvisionImages


class IdxFiles(datasets.MNIST):
    """MNIST from its four files alone: torchvision prefers `processed/*.pt` of its early versions, where they lie."""

    @property
    def raw_folder(self) -> str:
        """Folder of the files."""
        return str(Path(self.root, "MNIST", "raw"))

    def _check_legacy_exist(self) -> bool:
        return False


class MNIST(TorchvisionImages):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, (1, 28, 28), normalised.

    References:
        LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998.
    """

    dataset = IdxFiles
    shape = (1, 28, 28)
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
    shape = (3, 32, 32)
    files = ("train_32x32.mat", "test_32x32.mat")
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)
    splits = ({"split": "train"}, {"split": "test"})
    labels = "labels"


class CIFARImages(TorchvisionImages):
    """Base class of CIFAR-10 and CIFAR-100.

    Args:
        root: folder that holds the dataset, laid out as torchvision does.
        augment: whether training images are shifted by up to 4 pixels and flipped left to right at random, before
            what `augmentation` lists.
        options: those of `TorchvisionImages`.
    """

    shape = (3, 32, 32)

    def __init__(self, root: str = "data", augment: bool = False, **options: Any) -> None:
        super().__init__(root, **options)
        self.augment = augment
        if augment:
            self.augmentation = [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                *self.augmentation,
            ]


class CIFAR10(CIFARImages):
    """CIFAR-10: 50,000 training and 10,000 test images of ten kinds of objects, (3, 32, 32), normalised.

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


class CIFAR100(CIFARImages):
    """CIFAR-100: 50,000 training and 10,000 test images of a hundred kinds of objects, (3, 32, 32), normalised.

    References:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """

    dataset = datasets.CIFAR100
    classes = 100
    files = ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
