"""A data module's description of its samples, from which tasks and networks are built."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from deq_lightning.operators import Operator
from deq_lightning.perron import ROUNDING as ROUNDING

IMAGES = "images with a class each"
PIXELS = "images with a class for each pixel"
GRAPHS = "graphs with a class each"
NODES = "graphs with a class for each node"
NODE_LABELS = "graphs with several labels for each node"
TEXT = "a text"
PUZZLES = "puzzles with a label for each position"
IMAGE_NUMBERS = "images with numbers to predict"
IMAGE_LABELS = "images with several labels each"
RECONSTRUCTION = "images with the image to be found"
ROWS = "rows of numbers with a class each"
ROW_NUMBERS = "rows of numbers with numbers to predict"
ROW_LABELS = "rows of numbers with several labels each"
OF_ROWS = (ROWS, ROW_NUMBERS, ROW_LABELS)
WITH_ONE_ANSWER = (IMAGES, IMAGE_NUMBERS, IMAGE_LABELS, *OF_ROWS)  # a vector for every sample

UNKNOWN_ID = 0  # in every vocabulary, the id of the word that stands for all others
UNLABELLED = -100  # the label of positions that do not count; PyTorch's losses ignore it
AT_LEAST = ("num_classes", "perron")  # a network may be made for more of these


@dataclass(frozen=True)
class Samples:
    """A description of a data module's samples. None: unknown or not applicable.

    Args:
        kind: inputs and labels in words: one of the constants beside this class, or your own words.
        channels: channels of an image or of a row of numbers; of the image to be found, where that is wanted.
        size: height and width of every image in pixels, or of every puzzle; one length for a row. Of puzzles that come
            in several sizes, that of the training puzzles.
        features: numbers per input, such as a node or a row; for an image they follow from `channels` and `size`.
        classes: classes, or labels, to predict.
        targets: numbers to predict; each is one output of the network, whose outputs `num_classes` counts.
        words: words in the vocabulary.
        perron: bound on the Perron-Frobenius eigenvalue of the adjacency of every graph.
        operator: what an input was made with, of the image to be found.
    """

    kind: str
    channels: int | None = None
    size: tuple[int, ...] | None = None
    features: int | None = None
    classes: int | None = None
    targets: int | None = None
    words: int | None = None
    perron: float | None = None
    operator: Operator | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of an image, (channels, height, width), or of a row, (channels, length); None if it is unknown."""
        return None if self.channels is None or self.size is None else (self.channels, *self.size)

    def arguments(self) -> dict[str, Any]:
        """Return the network arguments that these samples determine, by name."""
        size = self.size
        values = {
            "in_channels": self.channels,
            "image_size": size[0] if size and len(size) == 2 and size[0] == size[1] else None,
            "dimensions": len(size) if size else None,
            "positions": math.prod(size) if size else None,
            "in_features": math.prod(self.shape) if self.shape and self.features is None else self.features,
            "num_classes": self.classes if self.targets is None else self.targets,
            "targets": self.targets,
            "vocab_size": self.words,
            "perron": self.perron,
        }
        return {name: value for name, value in values.items() if value is not None}

    def misfits(self, arguments: Mapping[str, Any], data: str) -> Iterator[str]:
        """Yield a sentence for each of a network's arguments that does not fit.

        Args:
            arguments: arguments of the network or the task.
            data: name of the data module.
        """
        may_exceed = AT_LEAST if self.targets is None else ()  # an output too many is no number to predict
        for name, wanted in self.arguments().items():
            value = arguments.get(name)
            if value is None or value == wanted or (name in may_exceed and value >= wanted * (1 - ROUNDING)):
                continue
            least = " or more" if name in may_exceed else ""
            yield f"`{name}` of the network must be {wanted:.7g}{least} for `{data}`, got {value}"

    def example(self) -> Tensor | None:
        """Return two all-zero samples if their shape is known: from one alone PyTorch refuses some statistics."""
        if self.kind in OF_ROWS and self.shape is None and self.features is not None:
            return torch.zeros(2, self.features)
        example = None if self.shape is None else torch.zeros(2, *self.shape)
        return example if self.operator is None or example is None else self.operator(example)


@runtime_checkable
class TextSource(Protocol):
    """A data module whose samples are words from a vocabulary that a network's weights depend on."""

    vocabulary: Any

    def vocabulary_state(self) -> dict[str, Any]:
        """Return plain data that identifies the vocabulary, for checkpoints."""

    def check_vocabulary(self, saved: dict[str, Any]) -> None:
        """Raise an error unless the vocabulary is that of the checkpoint."""


@runtime_checkable
class NumberSource(Protocol):
    """A data module whose samples have numbers to predict, in their own units."""

    target_names: Sequence[str] | None

    def target_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and standard deviation of each number over the training samples; known after `setup`."""


def samples_of(data: Any) -> Samples | None:
    """Return a data module's description of its samples, or None if it has none."""
    samples = getattr(data, "samples", None)
    return samples if isinstance(samples, Samples) else None
