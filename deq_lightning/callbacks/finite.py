"""What of a model's state is not finite."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def not_finite(named: Mapping[str, Any], device: torch.device | str = "cpu") -> list[str]:
    """Return the names under which there is a NaN or an infinity.

    Args:
        named: tensors, or nested lists and dictionaries of them, by name.
        device: where most of them are, so that the host waits for it only once.
    """
    names, finite = [], []
    for name, values in named.items():
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                names.append(name)
                finite.append(torch.isfinite(value).all().to(device))
    flags = torch.stack(finite).tolist() if finite else []
    return [name for name, flag in zip(names, flags, strict=True) if not flag]
