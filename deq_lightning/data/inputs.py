"""New samples without labels, for a trained model to answer."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deq_lightning.data.base import Described
from deq_lightning.data.errors import DataError, DatasetNotFoundError, brief
from deq_lightning.samples import Samples

ARRAYS = (".npy", ".npz")
READERS = 8  # threads; reading and decoding files leave Python's lock alone
NUMBERS = "fiub"  # kinds of arrays that are numbers


class NewInputs(Described):
    """Data whose prediction samples are new ones: prepared as those that evaluation sees, with a name each.

    What cannot be read is left out of the batches, and named in `faults`.

    Args:
        data: the data module of the training, of whose classes and batch size these are.
        source: where they come from, for messages.
        names: name of each, such as the path of its file.
        read: returns the sample with a number, such as a tensor; raises a DataError where there is none.
        note: what is to be said of them. None: nothing.
        together: makes a batch of several, such as `torch.stack` of tensors.

    Raises:
        DataError: from the loader, if none can be read.
    """

    def __init__(
        self,
        data: Described,
        source: str,
        names: Sequence[str],
        read: Callable[[int], Any],
        note: str | None = None,
        together: Callable[[list[Any]], Any] = torch.stack,
    ) -> None:
        super().__init__()
        self.data = data
        self.source = source
        self.names = names
        self.read = read
        self.note = note
        self.together = together
        self.taken: list[int] = []  # number of each sample that was read, in the order of the batches
        self.faults: list[str] = []

    @property
    def samples(self) -> Samples | None:
        """Description of the samples, where it needs no file of the training that is gone."""
        with suppress(DataError):
            return self.data.samples
        return None

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, where the data of the training knows them."""
        return self.data.class_names

    @property
    def file_names(self) -> Sequence[str]:
        """Name of each sample."""
        return self.names

    def predict_dataloader(self) -> "Batches":
        """Return the samples."""
        self.taken.clear()
        self.faults.clear()
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        own = range(rank, len(self.names), processes)
        return Batches(self, own, getattr(self.data, "eval_batch_size", 1))


class Batches:
    """The samples of one process, batch after batch, read by a few threads.

    Args:
        inputs: the samples.
        own: numbers of those of the process.
        size: samples of a batch.
    """

    def __init__(self, inputs: NewInputs, own: Sequence[int], size: int) -> None:
        self.inputs = inputs
        self.own = own
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        inputs = self.inputs
        with ThreadPoolExecutor(READERS) as readers:
            for start in range(0, len(self.own), self.size):
                numbers = self.own[start : start + self.size]
                read = dict(zip(numbers, readers.map(self._read, numbers), strict=True))
                good = {number: one for number, one in read.items() if not isinstance(one, DataError)}
                inputs.faults += [str(one) for one in read.values() if isinstance(one, DataError)]
                inputs.taken += good
                if good:
                    yield inputs.together(list(good.values()))
        if self.own and not inputs.taken:
            more = f" (and so it is with all {len(inputs.faults)} in `{inputs.source}`)" if len(self.own) > 1 else ""
            raise DataError(inputs.faults[0] + more)

    def _read(self, number: int) -> Any:
        try:
            return self.inputs.read(number)
        except DataError as error:
            return error


def array_inputs(
    data: Described, path: str, shape: Sequence[int], prepare: Callable[[np.ndarray], Tensor] | None = None
) -> NewInputs:
    """Return the samples that a file holds as an array.

    Args:
        data: the data module of the training.
        path: a file `.npy`, or `.npz` with one array in it, or one named `x`; nothing in it is executed.
        shape: of a sample.
        prepare: makes of (1, ...) rows of the array what the model takes. None: they are used as they are.

    Raises:
        DataError: if there is no such file, or it does not hold such samples.
    """
    array, wanted = _read_array(data, path), tuple(shape)
    if array.shape == wanted:
        array = array[None]
    if array.shape[1:] != wanted or not len(array) or array.dtype.kind not in NUMBERS:
        raise DataError(
            f"`{path}` must hold numbers of shape (samples, {', '.join(map(str, wanted))}), got {array.dtype} of shape "
            f"{array.shape}. Save them as the model takes them."
        )

    def read(number: int) -> Tensor:
        if prepare is not None:
            return prepare(np.array(array[number : number + 1]))[0]
        values = torch.from_numpy(np.array(array[number], dtype=np.float32))
        if not values.isfinite().all():
            raise DataError(f"`{path}[{number}]` must be finite numbers. Leave it out.")
        return values

    names = [f"{Path(path).name}[{number}]" for number in range(len(array))]
    note = f"`{path}` is taken as prepared: nothing in it is scaled or normalised" if prepare is None else None
    return NewInputs(data, path, names, read, note)


def _read_array(data: Any, path: str) -> np.ndarray:
    place = Path(path).expanduser()
    if place.suffix.lower() not in ARRAYS:
        raise DataError(f"`{type(data).__name__}` takes new inputs from a file {' or '.join(ARRAYS)}, got `{path}`.")
    try:
        found = np.load(place, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            if len(found.files) != 1 and "x" not in found.files:
                raise DataError(
                    f"`{path}` must hold one array or one named x, got {found.files}. Rename that of inputs."
                )
            return found["x" if "x" in found.files else found.files[0]]
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"there is no `{path}`. Name a file of an array.") from error
    except DataError:
        raise
    except Exception as error:  # whatever reading a damaged file may raise
        raise DatasetNotFoundError(
            f"`{path}` cannot be read as an array of numbers ({brief(error)}). Write it with `numpy.save`."
        ) from error
