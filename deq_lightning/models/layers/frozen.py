"""Layers whose random or derived tensors must stay the same in every evaluation of one solve."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import within

Module = TypeVar("Module", bound=nn.Module)


class Freezable(nn.Module):
    """A layer that can fix, for one solve, what it would otherwise draw or compute at every call."""

    @abstractmethod
    def freeze(self) -> None:
        """Fix it; called on the clone that `frozen` makes, never on the layer itself."""


def frozen(module: Module) -> Module:
    """Return a clone of `module` for one solve: it shares all parameters, and its freezable layers are frozen.

    A clone rather than a mode of the module: a map built on it stays the same function for as long as anybody holds it,
    so that several equilibria of one module can be differentiated together, backward may evaluate it again, and audits
    may come later. Call it with gradients on if the frozen tensors must reach their parameters. Only the modules on the
    way to a freezable layer are copied, and to one whose parameters `torch.func.functional_call` has replaced for now.
    """
    return _clone(module, {})


def _clone(module: Module, clones: dict[nn.Module, nn.Module]) -> Module:
    """Clone what must be cloned; a module used in two places is cloned once."""
    if module in clones:
        return cast(Module, clones[module])
    children = {name: None if child is None else _clone(child, clones) for name, child in module._modules.items()}
    clone, swapped = module, _swapped(module)
    below = any(child is not module._modules[name] for name, child in children.items())
    if isinstance(module, Freezable) or swapped or below:
        clone = copy.copy(module)
        clone.__dict__["_modules"] = children
    if swapped:
        clone.__dict__.update(_parameters=dict(module._parameters), _buffers=dict(module._buffers))
    if isinstance(clone, Freezable):
        clone.freeze()
    clones[module] = clone
    return clone


def _swapped(module: nn.Module) -> bool:
    return any(not isinstance(part, nn.Parameter | None) for part in module._parameters.values())


class VariationalDropout(Freezable):
    """Dropout whose mask is drawn once per solve and then shared by all evaluations.

    Args:
        p: probability of a mask value to be zero, in [0, 1). Identity in evaluation mode.
        shared: dimensions along which all elements have the same mask value. (2, 3) drops whole channels of images,
            (1,) features of sequences at all positions together, () every element by itself.

    Shapes:
        Any shape to the same; the mask has length 1 along the shared dimensions.

    Raises:
        ValueError: if `p` is out of its range, or if evaluations of one solve differ in the shape of the mask.

    References:
        Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", 2016.
    """

    def __init__(self, p: float = 0.0, shared: Sequence[int] = ()) -> None:
        super().__init__()
        within("[0, 1)", dropout=p)
        self.p = p
        self.shared = tuple(shared)
        self.keeps_mask = False
        self.mask: Tensor | None = None

    def freeze(self) -> None:
        """Keep the mask of the first evaluation, which is where its shape, dtype and device are known."""
        self.keeps_mask = True
        self.mask = None

    @property
    def active(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        """Zero what the mask drops and scale the rest by 1 / (1 − p)."""
        if not self.active:
            return x
        shape = tuple(1 if i in self.shared else length for i, length in enumerate(x.shape))
        mask = self.mask
        if mask is None:
            mask = F.dropout(x.new_ones(shape), self.p)
        if mask.shape != shape:
            raise ValueError(f"the mask of this solve is {tuple(mask.shape)}, for {tuple(x.shape)} it must be {shape}.")
        if self.keeps_mask:
            self.mask = mask
        return x * mask

    def extra_repr(self) -> str:
        """Show the probability, and what shares a value."""
        return f"p={self.p}, shared={self.shared}"


class WeightNorm(Freezable):
    r"""Weight normalisation of a layer, w = g·v / ‖v‖ per output (dimension 0), computed once per solve.

    A base for a class that is also a layer of PyTorch with a `weight`. `weight_v` has the shape of that weight, and
    `weight_g` (out, 1, ...) starts as ‖v‖, so that w starts as PyTorch's default initialisation.

    References:
        Salimans and Kingma, "Weight normalization", 2016, arXiv:1602.07868.
    """

    weight_g: nn.Parameter
    weight_v: nn.Parameter

    def split_weight(self) -> None:
        """Replace the layer's weight by its lengths and directions."""
        weight = cast(Tensor, self.weight)
        del self.weight
        self.weight_g = nn.Parameter(_norm(weight).detach())
        self.weight_v = nn.Parameter(weight.detach())
        self.frozen_weight: Tensor | None = None

    def freeze(self) -> None:
        """Compute the normalised weight, with its graph where gradients are on."""
        self.frozen_weight = self.normalised_weight()

    def normalised_weight(self) -> Tensor:
        """Return g·v / ‖v‖."""
        return self.weight_v * (self.weight_g / _norm(self.weight_v))

    def effective_weight(self) -> Tensor:
        """Return the weight of this solve, or of this moment where nothing is frozen."""
        return self.normalised_weight() if self.frozen_weight is None else self.frozen_weight


class WeightNormConv2d(WeightNorm, nn.Conv2d):
    """Convolution with weight normalisation per output channel, see `WeightNorm`.

    Args:
        *args: as `torch.nn.Conv2d`.
        **kwargs: as `torch.nn.Conv2d`.
    """

    def __init__(self, *args: int, **kwargs: int | bool) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)  # type: ignore[arg-type]
        self.split_weight()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the normalised weight."""
        return self._conv_forward(x, self.effective_weight(), self.bias)


class WeightNormLinear(WeightNorm, nn.Linear):
    """Linear layer with weight normalisation per output feature, see `WeightNorm`.

    Args:
        *args: as `torch.nn.Linear`.
        **kwargs: as `torch.nn.Linear`.
    """

    def __init__(self, *args: int, **kwargs: bool) -> None:
        nn.Linear.__init__(self, *args, **kwargs)  # type: ignore[arg-type]
        self.split_weight()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the normalised weight."""
        return F.linear(x, self.effective_weight(), self.bias)


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)
