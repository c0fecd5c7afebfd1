"""Strings of bits with their running parity."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deq_lightning.configured import several_sizes, sizes
from deq_lightning.data.order import derive_seed
from deq_lightning.data.puzzles.base import Pairs, SeveralSizes, no_twice
from deq_lightning.samples import PUZZLES, Samples

FEW = 20  # bits whose strings can all be listed
CHUNK = 1024


class PrefixSums(SeveralSizes):
    """Random strings of bits, each with its running parity: train on short strings, test on long ones.

    x (1, length) holds −1 for a bit that is 0 and 1 for one that is 1; y (length,) is 1 where the number of ones up to
    and with that bit is odd, otherwise 0. All strings of a length differ, over all splits.

    Args:
        length: bits of a training or validation string, 1 or more.
        test_lengths: bits of the strings of each test set, 1 or more.
        train_size: strings that train, 1 or more.
        val_size: strings that validate, 1 or more.
        test_size: strings of each test set, 1 or more.
        options: those of `Puzzles`.

    Raises:
        ValueError: if an argument is out of its range.
        SplitError: from `setup`, if there are not as many different strings.

    References:
        Schwarzschild et al., "Can you learn an algorithm? Generalizing from easy to hard problems with recurrent
        networks", NeurIPS 2021, arXiv:2106.04537.
    """

    def __init__(
        self,
        length: int = 16,
        test_lengths: Sequence[int] = (16, 32, 64, 128, 512),
        train_size: int = 10000,
        val_size: int = 500,
        test_size: int = 200,
        **options: Any,
    ) -> None:
        sizes(1, length=length)
        several_sizes(1, test_lengths=test_lengths)
        no_twice(test_lengths=test_lengths)
        super().__init__(length, test_lengths, train_size, val_size, test_size, **options)
        self.length = length
        self.test_lengths = list(test_lengths)

    @property
    def samples(self) -> Samples:
        """Description of the training strings."""
        return Samples(PUZZLES, channels=1, size=(self.length,), classes=2)

    def _named(self, size: int) -> str:
        return f"strings of {size} bits"

    def _stream(self, size: int) -> Iterator[Pairs]:
        draws = np.random.RandomState(derive_seed(self.seed, size))
        return (parity(bits) for bits in (every(size, draws) if size <= FEW else strings(size, draws)))


def parity(bits: np.ndarray) -> Pairs:
    """Return bits (count, length) as a row of signs each, and their running parity."""
    return (2 * bits - 1)[:, None].astype(np.int8), (bits.cumsum(axis=1) % 2).astype(np.int8)


def every(length: int, draws: np.random.RandomState) -> Iterator[np.ndarray]:
    """Yield all strings of bits of a length in random order, (count, length) at a time."""
    order = draws.permutation(2**length)
    for start in range(0, len(order), CHUNK):
        yield order[start : start + CHUNK, None] >> np.arange(length) & 1


def strings(length: int, draws: np.random.RandomState) -> Iterator[np.ndarray]:
    """Yield random strings of bits of a length without an end, (count, length) at a time."""
    while True:
        yield draws.randint(2, size=(CHUNK, length), dtype=np.int8)
