"""Images of which an observation is given, and which are to be found."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deq_lightning.configured import CombinationError, at_least
from deq_lightning.data.base import DataModule
from deq_lightning.data.errors import DataError
from deq_lightning.data.inputs import ARRAYS, NewInputs, array_inputs
from deq_lightning.data.order import SeededDraws, derive_seed
from deq_lightning.operators import Blur, Operator
from deq_lightning.samples import RECONSTRUCTION, Samples

SPLITS = ("train", "val", "test")
EXAMPLE = "Type `--data.images Digits`."


@contextmanager
def _of_images() -> Iterator[None]:
    """Let an error of the inner data name its arguments as they are set from outside: `images.root=PATH`."""
    try:
        yield
    except DataError as error:
        raise type(error)(re.sub(r"`(\w+)=", r"`images.\1=", str(error))) from error


class Degraded(DataModule):
    """Observations y = A x + noise of the images x of another data module, which are the targets.

    An item is (y, x), with x in [0, 1] and not normalised; classes are left out. The noise of a validation or test
    image is always the same; that of a training image is drawn anew every epoch, and a resumed run draws it again.

    Args:
        images: gives the images, their splits and batches; one whose images can be brought back to [0, 1], as `Digits`,
            `MNIST`, `SVHN`, `CIFAR10`, `CIFAR100`, `ImageFolder`, `ImageNet` and `RandomDots`.
        operator: A. None: `Blur()`.
        noise: standard deviation of the Gaussian noise of every pixel, 0 or more.
        seed: fixes the noise and the order of the training images, 0 or more; the splits are fixed by that of `images`.

    Raises:
        ValueError: if an argument is out of its range.
        CombinationError: if `images` has no such images; from `samples` and `setup`, if `operator` is not made for
            their size.
    """

    def __init__(
        self, images: DataModule, operator: Operator | None = None, noise: float = 0.05, seed: int = 0
    ) -> None:
        if not isinstance(images, DataModule):
            raise ValueError(f"`images` must be a data module of images, got {images!r}. {EXAMPLE}")
        super().__init__(images.batch_size, images.eval_batch_size, images.num_workers, seed)
        at_least(0, noise=noise)
        if type(images).moments is DataModule.moments:
            raise CombinationError(
                f"`images` must have values that can be brought back to [0, 1], which `{type(images).__name__}` has "
                f"not. {EXAMPLE}"
            )
        self.images = images
        self.operator = Blur() if operator is None else operator
        self.noise = noise

    @property
    def samples(self) -> Samples:
        """Description of the images to be found, and the operator."""
        with _of_images():
            own = self.images.samples
        if own is None or own.channels is None or own.size is None or len(own.size) != 2:
            raise CombinationError(f"`images` must have one known size, `{type(self.images).__name__}` has not.")
        if fault := self.operator.fault(*own.size):
            height, width = own.size
            raise CombinationError(f"{fault}, for images of {height} x {width} pixels. Set another `operator`.")
        return Samples(RECONSTRUCTION, own.channels, own.size, operator=self.operator)

    @property
    def departures(self) -> list[str]:
        """Choices that compromise results on the images."""
        return self.images.departures

    @property
    def file_names(self) -> Sequence[str] | None:
        """Path of each test image, where each is a file."""
        return self.images.file_names

    @property
    def sample_columns(self) -> Mapping[str, Sequence[Any]]:
        """What is known of each test image."""
        return self.images.sample_columns

    def prepare_data(self) -> None:
        """Let the images be fetched and checked."""
        with _of_images():
            self.images.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Fill the splits that the images fill."""
        _ = self.samples
        with _of_images():
            self.images.setup(stage)
        for number, split in enumerate(SPLITS):
            name = f"{split}_set"
            if (given := getattr(self.images, name)) is not None:
                plain = given.dataset if isinstance(given, SeededDraws) else given  # one stream is for both
                seen = Observed(plain, self.in_range, self.operator, self.noise)
                seed = self.seed if split == "train" else derive_seed(self.seed, number)
                setattr(self, name, SeededDraws(seen, seed))

    def in_range(self, image: Tensor) -> Tensor:
        """Return an image of `images` in [0, 1]."""
        moments = self.images.moments
        assert moments is not None  # the constructor has seen to that
        mean, std = moments
        return (image * std + mean).clamp(0, 1)

    def inputs(self, path: str) -> NewInputs:
        """Return observations: images at a path, or an array of tensors (samples, channels, height, width)."""
        example = self.samples.example()
        assert example is not None  # the size is known
        if Path(path).suffix.lower() in ARRAYS:
            return array_inputs(self, path, example.shape[1:])
        if example.shape[1:] != self.samples.shape:
            raise DataError(
                f"observations of `{self.operator!r}` are {tuple(example.shape[1:])}, another size than the images: "
                f"save them as an array (.npy), got `{path}`."
            )
        inner: Any = self.images.inputs(path)
        return NewInputs(self, path, inner.names, lambda number: self.in_range(inner.read(number)), inner.note)

    def state_dict(self) -> dict[str, Any]:
        """Return what the images save."""
        return self.images.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give it back to them."""
        self.images.load_state_dict(state_dict)

    def _workers(self) -> int:
        self.images.trainer = self.trainer
        return self.images._workers()


class Observed(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an observation and its image; noise is drawn from torch's CPU generator.

    Args:
        dataset: of images, each the first entry of an item.
        in_range: brings an image to [0, 1].
        operator: is applied to it.
        noise: standard deviation of what is added.
    """

    def __init__(self, dataset: Any, in_range: Callable[[Tensor], Tensor], operator: Operator, noise: float) -> None:
        self.dataset = dataset
        self.in_range = in_range
        self.operator = operator
        self.noise = noise

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.in_range(self.dataset[index][0])
        y = self.operator(x[None])[0]
        return y + self.noise * torch.randn(y.shape), x
