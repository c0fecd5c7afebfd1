"""The autograd node behind every gradient that is a vector-matrix product with (an estimate of) (I − J)⁻¹."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State, pack, unpack


class Jacobian:
    """The Jacobian of f at a state, as products with (batch, dim) tensors.

    Args:
        f: the map.
        leaf: (batch, dim) the state, which requires gradients.
        fz: (batch, dim) f of it, with its graph.
        like: gives the structure of the state.
    """

    def __init__(self, f: FixedPointMap, leaf: Tensor, fz: Tensor, like: State) -> None:
        self.f = f
        self.leaf = leaf
        self.fz = fz
        self.like = like
        device = leaf.device.type
        # Backward runs outside of the caller's autocast.
        self.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def transposed(self, w: Tensor) -> Tensor:
        """Return Jᵀw by going back through the one graph, which stays."""
        return torch.autograd.grad(self.fz, self.leaf, w, retain_graph=True, materialize_grads=True)[0]

    def __call__(self, v: Tensor) -> Tensor:
        """Return J v by one evaluation of f in forward mode."""
        autocast = torch.autocast(self.leaf.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with torch.no_grad(), forward_ad.dual_level(), autocast:
            fz = pack(self.f(unpack(forward_ad.make_dual(self.leaf.detach(), v), self.like)))
            tangent = forward_ad.unpack_dual(fz).tangent
        return torch.zeros_like(v) if tangent is None else tangent


Adjoint = Callable[[Jacobian, Tensor], Tensor]


def attach_adjoint(f: FixedPointMap, z: State, adjoint: Adjoint) -> State:
    """Return f(z) with a backward that first replaces the incoming gradient g by `adjoint(vjp, g)`.

    `f` is evaluated once. Its graph serves every product w ↦ Jᵀw that the adjoint asks for and then carries the result
    on to the parameters and the injection, so nothing is recomputed, parameters see one gradient (as DDP's hooks
    expect), and no tensor hook can outlive the graph.

    Args:
        f: the map.
        z: its fixed point, without a graph.
        adjoint: maps the Jacobian at `z`, and g as a (batch, dim) tensor, to w.

    Returns:
        f(z), of the structure and dtype of `z`. Differentiating twice raises.
    """
    flat = pack(z).detach().requires_grad_()
    fz = pack(f(unpack(flat, z)))

    jacobian = Jacobian(f, flat, fz, z)
    if not _reaches_a_leaf(fz, besides=flat):
        return unpack(fz.detach(), z)  # everything is frozen: an adjoint would be solved for nobody
    return unpack(_ReplaceGradient.apply(fz, lambda g: adjoint(jacobian, g)), z)


def _reaches_a_leaf(output: Tensor, besides: Tensor) -> bool:
    """Say whether a gradient of `output` would arrive anywhere else than at the leaf `besides`."""
    nodes, seen = [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not besides:
            return True
        nodes.extend(following for following, _ in node.next_functions)
    return False


class _ReplaceGradient(torch.autograd.Function):
    """The identity, with a backward of the caller's choice."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, backward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.replace = backward  # type: ignore[attr-defined]
        return value.detach()  # no copy: whoever writes to it is caught, because both share one version counter

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        # `once_differentiable` would not do: `autograd.grad(..., inputs)` prunes the branch that carries its error.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "This gradient cannot be differentiated twice. For `create_graph` use `UPG` or `Unrolled`."
            )
        return ctx.replace(g), None  # type: ignore[attr-defined]
