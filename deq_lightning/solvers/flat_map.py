"""A map of states as a map of tensors, where the contract of f is checked."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from deq_lightning.precision import autocast, autocast_dtype
from deq_lightning.solvers.solution import FixedPointMap
from deq_lightning.solvers.transforms import is_batched
from deq_lightning.state import Layout, State, join, matched

WRITES = (
    "`f` must not write to its argument, which solvers still need. Use `inplace=False` in its layers, "
    "or begin it with `z = z.clone()`."
)


class FlatMap:
    """A map of states as a map of (batch, dim) tensors, evaluated under the autocast state of its creator.

    Args:
        f: the map.
        like: a state that gives structure, shapes (but for the batch) and dtypes.
        device: type of the device.
    """

    def __init__(self, f: FixedPointMap, like: State, device: str) -> None:
        self.f = f
        self.layout = Layout(like)
        self.device = device
        self.half = autocast_dtype(device)

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate f at the (batch, dim) tensor `z`. What comes back may be memory that f writes to at the next call.

        Raises:
            ValueError: if f writes to its argument, or returns another structure, shapes or kind of numbers.
        """
        tensors = self._tensors(z)
        versions = _versions(tensors)
        with self._autocast():
            fz = self.f(self.layout.structure.unflatten(tensors))
        if _versions(tensors) != versions:
            raise ValueError(WRITES)
        return join(matched(fz, tensors, self.layout.structure)).to(z.dtype)

    def _tensors(self, z: Tensor) -> list[Tensor]:
        """Return the parts of the state at `z`, which count how often they are written to, or copies of them."""
        if torch.compiler.is_compiling() or is_batched(z):
            return self.layout.tensors(z.clone())
        if not z.is_inference():
            return self.layout.tensors(z)
        with torch.inference_mode(False):  # only tensors made outside it count
            return self.layout.tensors(z.clone())

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.half is None else autocast(self.device, self.half)

    def subset(self, rows: Tensor) -> "FlatMap | None":
        """Return the map of some of the samples, or None where f cannot be restricted."""
        with self._autocast():
            f = self.f.subset(rows) if hasattr(self.f, "subset") else None
        if f is None:
            return None
        smaller = copy.copy(self)
        smaller.f = f
        return smaller


def _versions(tensors: list[Tensor]) -> list[int]:
    """Return how often the tensors were written to. It costs no wait for the device; compilers do not know it."""
    return [] if torch.compiler.is_compiling() else [tensor._version for tensor in tensors]
