"""A text as contiguous streams, which a model with a memory reads segment after segment."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deq_lightning.data.base import DataError


class StreamBatch(NamedTuple):
    """The next segment of every stream, (streams, length) of int64.

    `targets` are the words that follow the `tokens`; `first` says that the streams begin here; `memory`, of what came
    before, is left to the task.
    """

    tokens: Tensor
    targets: Tensor
    first: bool
    memory: Any = None


class StreamLoader:
    """Cuts a text into streams of equal length, and gives the segments of all streams together, in order.

    Stream r is the r-th of `streams` equal parts; what is left over at the end of the text is not used, and neither is
    anything ever shuffled. The last segment is shorter. Lightning resumes it in the middle of an epoch.

    Args:
        tokens: (words,), the text; may lie on disk.
        streams: number of streams of all processes together.
        length: words of a segment.
        share: rank of this process and number of processes; rank r has the r-th equal part of the streams.
        done: says how many batches of the epoch a resumed run has trained on.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        streams: int,
        length: int,
        share: tuple[int, int] = (0, 1),
        done: Callable[[], int] = int,
    ) -> None:
        rank, processes = share
        rows, columns = streams // processes, len(tokens) // streams
        matrix = tokens[: streams * columns].reshape(streams, columns)
        self.matrix = matrix[rank * rows : (rank + 1) * rows]
        self.length = length
        self.layout = {"streams": streams, "segment_length": length, "words": len(tokens)}
        self.done = done
        self._resumed: dict[str, Any] | None = None

    def __len__(self) -> int:
        return -(-(self.matrix.shape[1] - 1) // self.length)

    def __iter__(self) -> Iterator[StreamBatch]:
        # A generator, because Lightning makes the iterator of a resumed run before it knows where the run was.
        for index in range(self._start(), len(self)):
            start = index * self.length
            stop = min(start + self.length, self.matrix.shape[1] - 1)
            segment = torch.from_numpy(self.matrix[:, start : stop + 1].astype(np.int64))
            yield StreamBatch(segment[:, :-1].contiguous(), segment[:, 1:].contiguous(), first=index == 0)

    def _start(self) -> int:
        """Return the first segment of this epoch, which is not 0 where a run was interrupted in its middle."""
        saved, self._resumed = self._resumed, None
        start = 0 if saved is None else self.done()
        if start == 0 or saved == self.layout:
            return start
        assert saved is not None
        differing = next(name for name, value in self.layout.items() if saved[name] != value)
        raise DataError(
            f"a run that stopped in the middle of an epoch continues on the same streams: `{differing}` was "
            f"{saved[differing]}, and is {self.layout[differing]}. Resume from the end of an epoch, or as it was."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return how the streams were cut; the position in them is part of Lightning's own progress."""
        return dict(self.layout)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next pass where the interrupted one stopped."""
        self._resumed = state_dict
