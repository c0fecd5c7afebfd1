"""A text as contiguous streams, which a model with a memory reads segment after segment."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class StreamBatch(NamedTuple):
    """The next segment of every stream, (streams, length) of int64.

    `targets` are the words that follow the `tokens`; `first` says that the streams begin here; the task fills `memory`
    with what came before.
    """

    tokens: Tensor
    targets: Tensor
    first: bool
    memory: Any = None


class StreamLoader:
    """Cuts a text into streams of equal length, and yields the segments of all streams together, in order.

    Stream r is the r-th of `streams` equal parts; the rest at the end of the text is not used, and nothing is ever
    shuffled. The last segment is shorter.

    Args:
        tokens: (words,), the text; may lie on disk.
        streams: number of streams of all processes together.
        length: words per segment.
        share: rank of this process and number of processes; rank r has the r-th equal part of the streams.
        start: returns the segment that a pass begins with; called when its first batch is requested.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        streams: int,
        length: int,
        share: tuple[int, int] = (0, 1),
        start: Callable[[], int] = int,
    ) -> None:
        rank, processes = share
        rows, columns = streams // processes, len(tokens) // streams
        matrix = tokens[: streams * columns].reshape(streams, columns)
        self.matrix = matrix[rank * rows : (rank + 1) * rows]
        self.length = length
        self.start = start

    def __len__(self) -> int:
        return -(-(self.matrix.shape[1] - 1) // self.length)

    def __iter__(self) -> Iterator[StreamBatch]:
        # A generator, because Lightning makes the iterator of a resumed run before it knows where the run was.
        for index in range(self.start(), len(self)):
            begin = index * self.length
            end = min(begin + self.length, self.matrix.shape[1] - 1)
            segment = torch.from_numpy(self.matrix[:, begin : end + 1].astype(np.int64))
            yield StreamBatch(segment[:, :-1].contiguous(), segment[:, 1:].contiguous(), first=index == 0)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing; the method only tells Lightning that the loader can resume, and `start` knows where.

        If a run's length is in epochs, Lightning restores loaders before it has read their states.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: `start` knows where to resume."""
