"""What all data modules share: splits, loaders, and randomness that survives a resume."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from typing import Any, ClassVar, cast

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.data import suggested_max_num_workers
from torch.utils.data import DataLoader, Dataset, Sampler

from deq_lightning.configured import check_at_least


class DataError(Exception):
    """The data cannot be used as asked for; the message is one line that says what to type.

    Args:
        message: that line. PyTorch makes an error of a loader's worker anew, from its traceback: then the line at the
            traceback's end.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class DatasetNotFoundError(DataError, FileNotFoundError):
    """A dataset is missing or damaged."""


class SplitError(DataError, ValueError):
    """A split does not fit the dataset."""


def brief(error: Exception) -> str:
    """Return the first line of an error, to stand in brackets."""
    return (str(error).splitlines() or [type(error).__name__])[0].strip(" .:")


def derive_seed(*numbers: int) -> int:
    """Hash non-negative numbers to one seed, so that neighbouring (seed, epoch) pairs never share a stream."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class EpochShuffle(Sampler[int]):
    """Shuffles by seed and epoch alone, so that a resumed run sees the order of an uninterrupted one.

    Lightning calls `set_epoch` before each epoch. With several devices it draws an order of its own over this one, by
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
        dataset: its transforms draw from torch's CPU generator, as torchvision's do.
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


class TrainLoader(DataLoader[Any]):
    """A DataLoader that looks at its sampler's epoch when the first batch is asked for.

    A plain one lets its workers prefetch as soon as an iterator exists, and Lightning makes a resumed run's iterator
    before it sets the epoch: the first resumed epoch would repeat the order of epoch 0.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: nothing runs before the first `next`
        if isinstance(self.dataset, SeededDraws):
            self.dataset.epoch.fill_(getattr(self.sampler, "epoch", 0))
        yield from super().__iter__()


class DataModule(pl.LightningDataModule, ABC):
    """Base of the data modules: a subclass fills `train_set`, `val_set` and `test_set` in `setup`.

    The order of the training samples depends on `seed` and the epoch only (with several devices also on the global
    seed); the last, smaller batch is kept.

    Args:
        batch_size: training samples per step and device, 1 or more.
        eval_batch_size: samples per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that load samples; by default 0 for data held in memory, otherwise one less than the
            cores of each device, at least 1 and at most 8.
        seed: fixes the splits and the order of the training samples, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_memory: ClassVar[bool] = False
    max_workers: ClassVar[int | None] = 8  # more only compete for memory where the samples are small
    train_loader: ClassVar[type[DataLoader[Any]]] = TrainLoader
    eval_loader: ClassVar[type[DataLoader[Any]]] = DataLoader

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        check_at_least(1, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size)
        check_at_least(0, num_workers=num_workers or 0, seed=seed)
        self.num_workers = num_workers
        self.seed = seed
        self.train_set: Dataset[Any] | Sequence[Any] | None = None
        self.val_set: Dataset[Any] | Sequence[Any] | None = None
        self.test_set: Dataset[Any] | Sequence[Any] | None = None

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Fill the splits that `stage` needs, or all of them for None."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training samples, in a new order each epoch."""
        dataset = self._filled("train_set")
        sampler = EpochShuffle(len(cast(Sized, dataset)), self.seed)
        return self.train_loader(dataset, batch_size=self.batch_size, sampler=sampler, **self._loader_options())

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation samples."""
        return self.eval_loader(self._filled("val_set"), batch_size=self.eval_batch_size, **self._loader_options())

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test samples."""
        return self.eval_loader(self._filled("test_set"), batch_size=self.eval_batch_size, **self._loader_options())

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test samples."""
        return self.test_dataloader()

    def _filled(self, split: str) -> Dataset[Any]:
        dataset: Dataset[Any] | None = getattr(self, split)  # a sequence will do for one
        if dataset is None:
            raise RuntimeError(f"`{type(self).__name__}.{split}` is empty. Call `setup()` before asking for a loader.")
        return dataset

    def _loader_options(self) -> dict[str, Any]:
        workers = self._workers()
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # of its own, because every new iterator draws a number from it, else from the global stream
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if self.in_memory:
            # Lightning advises workers for every loader without them; for tensors in memory they only cost time
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            return 0
        suggested = suggested_max_num_workers(self.trainer.num_devices if self.trainer else 1)
        return suggested if self.max_workers is None else min(self.max_workers, suggested)
