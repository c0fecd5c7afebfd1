"""The Jacobian of a map at a state, as products with it."""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deq_lightning.solvers import FixedPointMap
from deq_lightning.solvers.flat_map import FlatMap
from deq_lightning.state import State, pack


class Product(Protocol):
    """A matrix M for each sample, as products with (batch, dim) tensors."""

    def transposed(self, w: Tensor) -> Tensor:
        """Return Mᵀ w."""

    def __call__(self, v: Tensor, /) -> Tensor:
        """Return M v."""


class Jacobian:
    """The Jacobian J of f at a state, as products with (batch, dim) tensors.

    f is always evaluated under the autocast state in which this object was made, in backward as well.

    Args:
        f: the map.
        z: where to linearise it.
    """

    def __init__(self, f: FixedPointMap, z: State) -> None:
        flat = pack(z).detach()
        self.flat_map = FlatMap(f, like=z, device=flat.device.type)
        with torch.inference_mode(False):
            self.leaf = (flat.clone() if flat.is_inference() else flat).requires_grad_()

    @cached_property
    def fz(self) -> Tensor:
        """(batch, dim) f at the state, with its graph; f is evaluated once."""
        with torch.enable_grad():
            return self.flat_map(self.leaf)

    def transposed(self, w: Tensor) -> Tensor:
        """Return Jᵀw by backpropagation through the one graph, which is kept; with a graph where gradients are on."""
        if not self.fz.requires_grad:
            return torch.zeros_like(w)  # f depends on nothing
        again = torch.is_grad_enabled()
        products = torch.autograd.grad(
            self.fz, self.leaf, w, retain_graph=True, create_graph=again, materialize_grads=True
        )
        return products[0]

    def __call__(self, v: Tensor) -> Tensor:
        """Return J v by one evaluation of f in forward mode, which needs no graph."""
        with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
            tangent = v.clone() if v.is_inference() else v
            fz = self.flat_map(forward_ad.make_dual(self.leaf.detach(), tangent))
            image = forward_ad.unpack_dual(fz).tangent
            return torch.zeros_like(tangent) if image is None else image.clone()


class Linearisation:
    """The Jacobian of a function by `torch.func`, which every transform and compiler understands.

    Its products are differentiable in all that the function depends on.

    Args:
        f: the function.
        *values: where to linearise it.
    """

    def __init__(self, f: Callable[..., Tensor], *values: Tensor) -> None:
        self.fz, self._pull = torch.func.vjp(f, *values)  # type: ignore[misc]

    def transposed(self, w: Tensor) -> Tensor:
        """Return Jᵀ w, for a function of one tensor."""
        return self._pull(w)[0]

    def __call__(self, *v: Tensor) -> Tensor:
        """Return J v, the transpose of the transposed product: levels of forward mode cannot be nested."""
        return torch.func.vjp(self._pull, torch.zeros_like(self.fz))[1](v)[0]


class Transposed:
    """The transpose of a product.

    Args:
        product: the product.
    """

    def __init__(self, product: Product) -> None:
        self.transposed = product
        self._product = product

    def __call__(self, v: Tensor) -> Tensor:
        """Return the transpose times v."""
        return self._product.transposed(v)
