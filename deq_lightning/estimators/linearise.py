"""The Jacobian of a map at a state, as products with it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State, pack, unpack


@contextmanager
def differentiable() -> Iterator[None]:
    """Turn gradients on, under `no_grad` and `inference_mode` too; what f uses must come from outside the latter."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def linearise(f: FixedPointMap, z: State) -> tuple[Tensor, Tensor]:
    """Evaluate f at `z` once, with its graph.

    Returns:
        A leaf equal to `z` and f of it, both (batch, dim).
    """
    leaf = pack(z).detach().clone().requires_grad_()
    return leaf, pack(f(unpack(leaf, z)))


def vjp(fz: Tensor, leaf: Tensor, w: Tensor, create_graph: bool = False) -> Tensor:
    """Return Jᵀw, (batch, dim); the graph stays."""
    if not fz.requires_grad:
        return torch.zeros_like(leaf)  # f depends on nothing
    keep = {"retain_graph": True, "create_graph": create_graph, "materialize_grads": True}
    return torch.autograd.grad(fz, leaf, w, **keep)[0]


def transposed_product(f: FixedPointMap, z: State) -> Callable[[Tensor], Tensor]:
    """Return w ↦ Jᵀw; under `inference_mode`, whose tensors no graph may hold, w ↦ Jw, of the same spectrum."""
    if not torch.is_inference_mode_enabled():
        with torch.enable_grad():
            leaf, fz = linearise(f, z)
        return lambda w: vjp(fz, leaf, w)

    with torch.inference_mode(False):
        point = pack(z).clone()

    def product(w: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
            fz = pack(f(unpack(forward_ad.make_dual(point, w.clone()), z)))
            tangent = forward_ad.unpack_dual(fz).tangent
            return torch.zeros_like(point) if tangent is None else tangent.clone()

    return product
