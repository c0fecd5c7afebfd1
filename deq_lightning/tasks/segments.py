"""Deep supervision: several optimizer steps on one puzzle, each from the state that the last one has come to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from deq_lightning.configured import whole, within

Places = dict[str, Any]  # of every row: its puzzle `x`, `y`, its state `z`, the segments it has had, whether it is done


class Segments:
    """Rows of puzzles that stay for several training steps, the segments, and then make room for the next ones.

    A row leaves when it has had `most` segments, or earlier if it is told to stop; its place is taken by the puzzle in
    the same row of the batch of that step. In a smaller batch, such as the last of an epoch, the other rows wait.

    Args:
        most: segments of a row, 1 or more.
        explore: probability that a row which is told to stop must first have had a number of segments, drawn from 2 to
            `most`; in [0, 1].

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Wang et al., "Hierarchical reasoning model", 2025, arXiv:2506.21734.
    """

    def __init__(self, most: int, explore: float) -> None:
        whole(1, "1 is training without segments.", segments=most)
        within("[0, 1]", explore=explore)
        self.most = most
        self.explore = explore
        self.places: Places | None = None
        self._active: Places = {}
        self._waiting: Places = {}

    def enter(self, x: Tensor, y: Tensor, first_state: Callable[[Tensor], Any]) -> tuple[Tensor, Tensor, Any]:
        """Let new puzzles take the places that are free, and return puzzles, labels and states to go on from.

        Args:
            x: (batch, ...) puzzles.
            y: (batch, ...) labels.
            first_state: returns where the solve of new puzzles starts.
        """
        new = {
            "x": x,
            "y": y,
            "z": first_state(x),
            "count": torch.zeros(len(x), dtype=torch.long, device=x.device),
            "done": torch.ones(len(x), dtype=torch.bool, device=x.device),
        }
        old = new if self.places is None else tree_map(_lengthened, self.places, new)
        own, self._waiting = tree_map(lambda rows: rows[: len(x)], old), tree_map(lambda rows: rows[len(x) :], old)
        taken = ~own["done"]
        self._active = tree_map(lambda ours, theirs: _rows(taken, ours, theirs), own, new)
        return self._active["x"], self._active["y"], self._active["z"]

    def leave(self, z: Any, stop: Tensor | None = None) -> None:
        """Keep the states for the next step, and free the places of the rows that are done.

        Args:
            z: the states, without a graph.
            stop: (batch,) which rows are told to stop. None: none.
        """
        count = self._active["count"] + 1
        done = count >= self.most
        if stop is not None:
            drawn = torch.randint(2, max(self.most, 2) + 1, count.shape, device=count.device)
            least = torch.where(torch.rand(count.shape, device=count.device) < self.explore, drawn, 1)
            done |= stop & (count >= least)
        active = self._active | {"z": z, "count": count, "done": done}
        self.places = tree_map(lambda ours, theirs: torch.cat([ours, theirs]), active, self._waiting)


def _rows(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (one.ndim - 1)), one, other)


def _lengthened(old: Tensor, new: Tensor) -> Tensor:
    """Return the rows of before, with further ones where the batch has more."""
    return torch.cat([old.to(new), new[len(old) :]])
