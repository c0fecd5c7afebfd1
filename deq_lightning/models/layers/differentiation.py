"""What a cell can know of how it is differentiated, for kernels that lack a derivative."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deq_lightning.solvers.transforms import transformed


def carries_tangent(x: Tensor) -> bool:
    """Say whether `x` is differentiated in forward mode."""
    return forward_ad.unpack_dual(x).tangent is not None


def differentiated() -> bool:
    """Say whether what is computed now may be differentiated, backward or forward."""
    return torch.is_grad_enabled() or transformed()
