"""Callbacks that one command adds to the runs of another."""

from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning.callbacks import Callback

CALLBACKS: list[Callback] = []  # of every trainer that is built while they are here


@contextmanager
def with_callbacks(*callbacks: Callback) -> Iterator[None]:
    """Let the fits in a block have these callbacks as well; their configs do not know of them."""
    before = len(CALLBACKS)
    CALLBACKS.extend(callbacks)
    try:
        yield
    finally:
        del CALLBACKS[before:]
