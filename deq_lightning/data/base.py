"""What all data modules share: splits and loaders."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, ClassVar, cast

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.data import suggested_max_num_workers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deq_lightning.configured import given_arguments, whole, within
from deq_lightning.data.errors import DataError, SplitError, brief
from deq_lightning.data.order import EpochShuffle, TrainLoader
from deq_lightning.samples import Samples

Size = int | float  # of a split: a number of samples, or a share of all in (0, 1), as in scikit-learn


def check_sizes(minimum: int = 1, **sizes: Size | None) -> None:
    """Raise a ValueError that names the first of `sizes` that is neither `minimum` samples or more nor a share."""
    for name, size in sizes.items():
        if isinstance(size, float):
            within("(0, 1)", "A number of samples has no decimal point.", **{name: size})
        elif size is not None:
            whole(minimum, "A share is a number in (0, 1), such as 0.1.", **{name: size})


def samples_in(size: Size, total: int, rounding: Callable[[float], int] = math.ceil) -> int:
    """Return the number of samples that `size` stands for, out of `total`."""
    return rounding(size * total) if isinstance(size, float) else size


def drawn(
    count: int, sizes: Mapping[str, int], seed: int, labels: Sequence[Any] | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the numbers of the samples of each split, ascending; what those of `sizes` leave trains.

    Args:
        count: samples in all.
        sizes: of the other splits, by their names.
        seed: fixes the choice, 0 or more.
        labels: (count,) class of each: every split holds them in the same proportions. None: any are chosen.

    Raises:
        SplitError: if a size does not fit the classes.
    """
    from sklearn.model_selection import train_test_split  # takes a second

    rest, parts = np.arange(count), {}
    for name in sorted(sizes):  # "test" first: it does not depend on `val_size`
        stratify = None if labels is None else np.asarray(labels)[rest]
        try:
            rest, parts[name] = train_test_split(rest, test_size=sizes[name], stratify=stratify, random_state=seed)
        except ValueError as error:
            raise SplitError(f"`{name}_size` does not fit the classes ({brief(error)}). Set another.") from error
    return {name: np.sort(numbers) for name, numbers in {"train": rest, **parts}.items()}


class Described(pl.LightningDataModule, ABC):
    """What the command line and the tasks ask of a data module, with default answers."""

    folds: int | None = None  # of a cross-validation; such a module has `fold` and `validate_on_test` too
    unit: str = "samples"  # what `split_sizes` counts

    def __init__(self) -> None:
        super().__init__()
        self.made_with = given_arguments(self)  # for checkpoints. None: they are no plain data

    @property
    def samples(self) -> Samples | None:
        """Description of the samples, from which networks are built; may read files, and come before `prepare_data`."""
        return None

    @property
    def departures(self) -> list[str]:
        """Choices that compromise results on this data, in words."""
        return []

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, in the order of their numbers, where the data has names; known after `setup`."""
        return None

    @property
    def file_names(self) -> Sequence[str] | None:
        """Path of each sample that `predict` sees, in their order, where each is a file; known after `setup`."""
        return None

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation, (channels, 1, 1), that images in [0, 1] were normalised with; after `setup`."""
        return None

    @property
    def sample_columns(self) -> Mapping[str, Sequence[Any]]:
        """What is known of each sample that `predict` sees, such as how hard it is; known after `setup`.

        Each name has plain values, one per sample and in their order; where there are several test sets, none are used.
        """
        return {}

    @property
    def test_names(self) -> Sequence[str]:
        """Names of the test sets, in the order of their loaders, where there are several."""
        return ()

    def split_sizes(self) -> dict[str, int]:
        """Return the size of each split that `setup` has filled, where it is known."""
        return {}

    def inputs(self, path: str) -> pl.LightningDataModule:
        """Return a data module for `predict`, whose samples are what lies at a path; they need no labels.

        A data module that can prepare a new sample as evaluation sees it returns `NewInputs` of their names and
        tensors. What it needs of the training is in its `state_dict`, which has been loaded; neither `prepare_data`
        nor `setup` are called before.

        Args:
            path: a file or a folder, or `-` for standard input.

        Raises:
            DataError: if there is nothing there that can be used, or, as here, the data cannot do that.
        """
        raise DataError(f"`{type(self).__name__}` cannot read new inputs, got `{path}`. Predict its test samples.")


class DataModule(Described):
    """Base class of data modules. To derive one, implement `setup`, which fills `train_set`, `val_set` and `test_set`.

    Override `samples` as well to describe the samples, so that the sizes of a network need not be typed.

    The order of the training samples depends only on `seed` and the epoch (with several devices also on the global
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
    max_workers: ClassVar[int | None] = 8  # with small samples, more only compete for memory
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
        whole(1, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size)
        whole(0, num_workers=0 if num_workers is None else num_workers)
        whole(0, most=2**32 - 1, seed=seed)
        self.num_workers = num_workers
        self.seed = seed
        self.train_set: Dataset[Any] | Sequence[Any] | None = None
        self.val_set: Dataset[Any] | Sequence[Any] | None = None
        self.test_set: Dataset[Any] | Sequence[Any] | None = None

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Fill the splits that `stage` needs, or all of them for None."""

    def split_sizes(self) -> dict[str, int]:
        """Return the number of samples in each split that `setup` has filled, where it is known."""
        splits = {split: getattr(self, f"{split}_set") for split in ("train", "val", "test")}
        return {split: len(part) for split, part in splits.items() if isinstance(part, Sized)}

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
        dataset: Dataset[Any] | None = getattr(self, split)  # a sequence works as one
        if dataset is None:
            raise RuntimeError(f"`{type(self).__name__}.{split}` is empty. Call `setup()` before asking for a loader.")
        return dataset

    def _loader_options(self) -> dict[str, Any]:
        workers = self._workers()
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # a separate one, because every new iterator draws a number from it, otherwise from the global stream
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if self.in_memory:
            return 0  # for tensors in memory, workers only cost time
        suggested = suggested_max_num_workers(self.trainer.num_devices if self.trainer else 1)
        return suggested if self.max_workers is None else min(self.max_workers, suggested)
