"""What a cell can know of how it is differentiated, for kernels that lack a derivative."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def carries_tangent(x: Tensor) -> bool:
    """Say whether `x` is differentiated in forward mode."""
    return forward_ad.unpack_dual(x).tangent is not None


def differentiated(x: Tensor) -> bool:
    """Say whether what is computed of `x` may be differentiated, backward or forward."""
    return torch.is_grad_enabled() or carries_tangent(x)
