"""The Jacobian of a map at a state, as products with it."""

from functools import cached_property

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deq_lightning.solvers import FixedPointMap
from deq_lightning.solvers.base import FlatMap
from deq_lightning.state import State, pack


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

    def transposed(self, w: Tensor, create_graph: bool = False) -> Tensor:
        """Return Jᵀw by backpropagation through the one graph, which is kept."""
        if not self.fz.requires_grad:
            return torch.zeros_like(w)  # f depends on nothing
        return torch.autograd.grad(
            self.fz, self.leaf, w, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )[0]

    def __call__(self, v: Tensor) -> Tensor:
        """Return J v by one evaluation of f in forward mode, which needs no graph."""
        with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
            tangent = v.clone() if v.is_inference() else v
            fz = self.flat_map(forward_ad.make_dual(self.leaf.detach(), tangent))
            image = forward_ad.unpack_dual(fz).tangent
            return torch.zeros_like(tangent) if image is None else image.clone()
