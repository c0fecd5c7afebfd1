"""The autograd node behind every gradient that is a vector-matrix product with (an estimate of) (I − J)⁻¹."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from deq_lightning.gradients.jacobian import Jacobian
from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State, mix, unpack

Adjoint = Callable[[Jacobian, Tensor], Tensor]


def attach_adjoint(f: FixedPointMap, z: State, adjoint: Adjoint) -> State:
    """Return f(z) with a backward that first replaces the incoming gradient g by `adjoint(jacobian, g)`.

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
    if not torch.is_grad_enabled():
        return mix(z, f(z), 1)
    jacobian = Jacobian(f, z)
    if not _reaches_a_leaf(jacobian.fz, besides=jacobian.leaf):
        return unpack(jacobian.fz.detach(), z)  # no parameter wants a gradient, so the adjoint is not needed
    return unpack(_ReplaceGradient.apply(jacobian.fz, lambda g: adjoint(jacobian, g)), z)


def _reaches_a_leaf(output: Tensor, besides: Tensor) -> bool:
    """Return whether a gradient of `output` would reach any leaf other than `besides`."""
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
    """The identity, with a backward that the caller chooses."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, backward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.replace = backward  # type: ignore[attr-defined]
        return value.detach()  # no copy: a write to it is detected, because both share one version counter

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        # `once_differentiable` would not do: `autograd.grad(..., inputs)` prunes the branch that carries its error.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "This gradient cannot be differentiated twice. For `create_graph` use `UPG` or `Unrolled`."
            )
        return ctx.replace(g), None  # type: ignore[attr-defined]
