"""Which of PyTorch's function transforms and forward-mode levels surround a computation."""

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Say whether a transform of `torch.func`, or forward mode, may differentiate or vectorise what is computed now."""
    if torch.compiler.is_compiling():
        return False
    forward = forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()
    return forward or torch._C._are_functorch_transforms_active()


def vectorising() -> bool:
    """Say whether `torch.func.vmap` is at work, at any level."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    levels = _functorch.get_interpreter_stack() or []
    return any(level.key() == _functorch.TransformType.Vmap for level in levels)


def is_batched(state: Tensor) -> bool:
    """Say whether it stands for several tensors, one for each call that `torch.func.vmap` makes at once."""
    if torch.compiler.is_compiling():
        return False
    while _functorch.is_functorch_wrapped_tensor(state):
        if _functorch.is_batchedtensor(state):
            return True
        state = _functorch.get_unwrapped(state)
    return False
