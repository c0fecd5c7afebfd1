"""Random dots that move."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from deq_lightning.configured import sizes, within
from deq_lightning.data.base import DataModule
from deq_lightning.data.inputs import NewInputs, array_inputs
from deq_lightning.data.order import derive_seed
from deq_lightning.samples import IMAGES, Samples

DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}  # rows and columns that dots move
SPLITS = ("train", "val", "test")
CHUNK = 128  # images that are drawn at a time


class RandomDots(DataModule):
    """Two frames of random dots, which have moved in one of four directions in between: which one is the class.

    An item is (x, y): x (2, size, size) holds −1 and 1; the second frame is the first, shifted by 1 to `max_shift`
    pixels round the edges, with some of its pixels drawn anew. The further the dots have moved, the harder it is to see
    where: the shift of each test image, in pixels, is a column of the predictions, `shift`.

    Images are generated and held in memory; those of a split do not depend on how many the others have.

    Args:
        size: height and width of a frame, in pixels, 3 or more.
        max_shift: longest shift, in pixels, 1 or more and less than half of `size`, beyond which opposite directions
            would be the same.
        coherence: probability that a pixel of the second frame is not drawn anew, in [0, 1]; at 0 the frames are
            independent, and there is nothing to see.
        density: probability that a pixel is 1, in (0, 1).
        train_size: images that train, 1 or more.
        val_size: images that validate, 1 or more.
        test_size: images that test, 1 or more.
        batch_size: training images per step and device, 1 or more.
        options: those of `DataModule`; `seed` fixes the images as well.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Mathur, Pearlmutter and Plis, "MIND over body: adaptive thinking using dynamic computation", ICLR 2025.
    """

    in_memory: ClassVar[bool] = True

    def __init__(
        self,
        size: int = 24,
        max_shift: int = 6,
        coherence: float = 0.9,
        density: float = 0.5,
        train_size: int = 4000,
        val_size: int = 1000,
        test_size: int = 1000,
        batch_size: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        sizes(3, size=size)
        sizes(1, max_shift=max_shift, train_size=train_size, val_size=val_size, test_size=test_size)
        if size <= 2 * max_shift:
            raise ValueError(
                f"`size` must be above {2 * max_shift}, twice `max_shift`, for opposite directions to differ, got "
                f"{size}. Set `data.max_shift={(size - 1) // 2}` or less, or a larger `size`."
            )
        within("[0, 1]", coherence=coherence)
        within("(0, 1)", "At its ends all pixels are the same.", density=density)
        self.size = size
        self.max_shift = max_shift
        self.coherence = coherence
        self.density = density
        self.train_size = train_size
        self.val_size = val_size
        self.test_size = test_size
        self.shifts: dict[str, list[int]] = {}  # of the images of each split that has been drawn

    @property
    def samples(self) -> Samples:
        """Description of the images."""
        return Samples(IMAGES, channels=2, size=(self.size, self.size), classes=len(DIRECTIONS))

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the directions."""
        return list(DIRECTIONS)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation that make −1 and 1 of black and white."""
        half = torch.full((2, 1, 1), 0.5)
        return half, half

    @property
    def sample_columns(self) -> Mapping[str, Sequence[int]]:
        """How far the dots of each test image have moved, in pixels."""
        return {"shift": self.shifts["test"]} if "test" in self.shifts else {}

    def setup(self, stage: str | None = None) -> None:
        """Draw the images of the splits that `stage` needs, or of all of them for None."""
        if stage in ("fit", "validate", None):
            self.train_set, self.val_set = self._drawn("train"), self._drawn("val")
        if stage in ("test", "predict", None):
            self.test_set = self._drawn("test")

    def inputs(self, path: str) -> NewInputs:
        """Return the pairs of frames of an array (samples, 2, size, size); no image file has two channels."""
        return array_inputs(self, path, (2, self.size, self.size))

    def _drawn(self, split: str) -> TensorDataset:
        count = getattr(self, f"{split}_size")
        draws = np.random.RandomState(derive_seed(self.seed, SPLITS.index(split)))
        chunks = [self._chunk(draws) for _ in range(math.ceil(count / CHUNK))]
        x, y, shifts = (torch.as_tensor(np.concatenate(parts)[:count]) for parts in zip(*chunks, strict=True))
        self.shifts[split] = shifts.tolist()
        return TensorDataset(x, y)

    def _chunk(self, draws: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return some images, their directions and their shifts."""
        first, fresh = draws.random_sample((2, CHUNK, self.size, self.size)) < self.density
        directions = draws.randint(len(DIRECTIONS), size=CHUNK, dtype=np.int64)
        shifts = draws.randint(1, self.max_shift + 1, size=CHUNK, dtype=np.int64)
        moved = rolled(first, shifts[:, None] * np.array(list(DIRECTIONS.values()))[directions])
        kept = draws.random_sample(moved.shape) < self.coherence
        frames = np.stack([first, np.where(kept, moved, fresh)], axis=1)
        return np.where(frames, np.float32(1), np.float32(-1)), directions, shifts


def rolled(images: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return images (count, height, width), each rolled by its own steps (count, 2): rows down and columns right."""
    count, *shape = images.shape
    rows, columns = ((np.arange(n) - steps[:, axis, None]) % n for axis, n in enumerate(shape))
    return images[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
