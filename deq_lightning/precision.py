"""Mixed precision on devices that know it and on those that do not, as the meta device."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype of the autocast that is on for a type of device; None: there is none."""
    on = _knows_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a context in which a type of device computes in mixed precision.

    Args:
        device: type of the device.
        dtype: the lower precision. None: full precision.
    """
    if not _knows_autocast(device):  # PyTorch refuses even to turn it off
        return nullcontext()
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Return a context without mixed precision."""
    return autocast(device, None)


def _knows_autocast(device: str) -> bool:
    if torch.compiler.is_compiling():  # compilers of PyTorch 2.11 cannot ask
        return device != "meta"
    return torch.amp.is_autocast_available(device)
