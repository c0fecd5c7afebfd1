"""The order of training samples and their random draws, reproducible when a run resumes."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def derive_seed(*numbers: int) -> int:
    """Hash non-negative numbers to one seed, so that neighbouring (seed, epoch) pairs never share a stream."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class EpochShuffle(Sampler[int]):
    """Shuffles by seed and epoch alone, so that a resumed run sees the order of an uninterrupted one.

    Lightning calls `set_epoch` before each epoch. With several devices it draws its own order on top of this one, by
    epoch and global seed, and deals it out.

    Args:
        length: number of samples.
        seed: 0 or more.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        yield from torch.randperm(self.length, generator=generator).tolist()


class SeededDraws(Dataset[Any]):
    """Gives a sample's random transforms a stream of their own, fixed by seed, epoch and index.

    So augmentation resumes exactly, does not depend on the number of workers, and draws nothing from the global stream.

    Args:
        dataset: a dataset whose transforms draw from torch's CPU generator, as torchvision's do.
        seed: 0 or more.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed: it would restart the accelerator's stream too
            torch.default_generator.manual_seed(derive_seed(self.seed, int(self.epoch), index))
            return self.dataset[index]


class Rest:
    """What is left of a sampler's pass after a number of samples; its length stays that of the whole pass.

    Args:
        sampler: the sampler.
        seen: samples that have been drawn.
    """

    def __init__(self, sampler: Iterable[int], seen: int) -> None:
        self.sampler = sampler
        self.seen = seen

    def __len__(self) -> int:
        return len(cast(Sized, self.sampler))

    def __iter__(self) -> Iterator[int]:
        return islice(self.sampler, self.seen, None)


class TrainLoader(DataLoader[Any]):
    """A DataLoader that reads its sampler's epoch when the first batch is requested, and goes on within an epoch.

    A plain DataLoader's workers prefetch as soon as an iterator exists, and Lightning makes a resumed run's iterator
    before it sets the epoch: the first resumed epoch would repeat the order of epoch 0. It would also begin an epoch
    that was interrupted with the batches that it began with before; Lightning saves `state_dict` in checkpoints.
    """

    _seen = 0  # batches of this pass that have been handed over
    _had: Mapping[str, int] = MappingProxyType({})  # state of the pass that a resumed run was in

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: nothing runs before the first `next`
        if isinstance(self.dataset, SeededDraws):
            self.dataset.epoch.fill_(self._epoch)
        # With `limit_train_batches` a pass may have been over before its end: then this is another one.
        goes_on = self._had.get("epoch", self._epoch) == self._epoch
        self._seen, self._had = self._had.get("batches", 0) if goes_on else 0, {}
        batches: Any = self.batch_sampler
        whole = batches.sampler
        batches.sampler = Rest(whole, self._seen * batches.batch_size)
        try:
            for batch in super().__iter__():
                self._seen += 1
                yield batch
        finally:
            batches.sampler = whole

    @property
    def _epoch(self) -> int:
        return getattr(self.sampler, "epoch", 0)

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of which epoch have been handed over."""
        return {"batches": self._seen % max(len(self), 1), "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out as many at the begin of the next pass, if it is of this epoch."""
        self._had = state
