"""The autograd node behind every gradient that is a vector-matrix product with (an estimate of) (I − J)⁻¹."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deq_lightning.gradients.jacobian import Jacobian, Linearisation
from deq_lightning.gradients.ports import begins, node_count, ports
from deq_lightning.gradients.root import Adjoint, FixedPoint, Root, attach_root
from deq_lightning.solvers import FixedPointMap
from deq_lightning.solvers.flat_map import FlatMap
from deq_lightning.solvers.transforms import transformed
from deq_lightning.state import State, mix, pack, unpack

HIDDEN = (
    "A second derivative of `Implicit` needs every tensor that `f` depends on, and one that is not a leaf is hidden. "
    "Make it an attribute of `f` or of a module that `f` uses."
)
WRITTEN = "A tensor that `f` depends on was written to before a second derivative was taken."


def attach_adjoint(
    f: FixedPointMap, z: State, adjoint: Adjoint, exact: bool = False, first: Adjoint | None = None
) -> State:
    """Return f(z) with a backward that first replaces the incoming gradient g by `adjoint(jacobian, g)`.

    `f` is evaluated once. Its graph serves every product w ↦ Jᵀw that the adjoint asks for and then carries the result
    on to the parameters and the injection, so nothing is recomputed, parameters see one gradient (as DDP's hooks
    expect), and no tensor hook can outlive the graph. Transforms and forward mode, which know no such graph, and the
    derivatives of an exact gradient evaluate f again.

    Args:
        f: the map.
        z: its fixed point, without a graph.
        adjoint: maps the Jacobian at `z`, and g as a (batch, dim) tensor, to w.
        exact: whether w solves w = Jᵀ w + g. Its derivatives then know that z and w depend on everything. Otherwise z
            is a constant, and the adjoint is differentiated as it is written.
        first: another adjoint for the gradient itself. None: `adjoint`.

    Returns:
        f(z), of the structure and dtype of `z`.
    """
    if transformed():
        return attach_root(f, z, adjoint, exact)
    if not torch.is_grad_enabled():
        return mix(z, f(z), 1)
    first = first or adjoint
    if torch.compiler.is_compiling():
        return _compiled(f, z, first)
    since = node_count()
    jacobian = Jacobian(f, z)
    beginnings = begins(jacobian.fz, since, besides=jacobian.leaf)
    one = next(beginnings, None)
    if one is None:
        return unpack(jacobian.fz.detach(), z)  # nothing wants a gradient, so the adjoint is not needed
    again = Again(jacobian, adjoint, *ports(f, [one, *beginnings])) if exact else None
    inputs = () if again is None else again.inputs
    return unpack(_ReplaceGradient.apply(jacobian.fz, lambda g: first(jacobian, g), again, *inputs), z)


def _compiled(f: FixedPointMap, z: State, adjoint: Adjoint) -> State:
    """Do the same for a compiler, which follows no graph: backward evaluates f once more for its products."""
    point = pack(z).detach()
    flat = FlatMap(f, like=z, device=point.device.type)
    return unpack(_ReplaceGradient.apply(flat(point), lambda g: adjoint(Linearisation(flat, point), g), None), z)


class Again:
    """The exact gradient as a differentiable function.

    Args:
        jacobian: the Jacobian of f at its fixed point.
        adjoint: solves the adjoint equation.
        inputs: what f depends on.
        known: whether that is all.
    """

    def __init__(self, jacobian: Jacobian, adjoint: Adjoint, inputs: list[Tensor], known: bool) -> None:
        self.jacobian = jacobian
        self.adjoint = adjoint
        self.inputs = inputs
        self.known = known
        self.versions = [part._version for part in inputs]

    def __call__(self, g: Tensor) -> list[Tensor | None]:
        """Return the gradients of the inputs.

        Raises:
            RuntimeError: if they are not all known, or not what they were.
        """
        if [part._version for part in self.inputs] != self.versions:
            raise RuntimeError(WRITTEN)
        point = self.jacobian.leaf.detach()
        equation = FixedPoint(self.jacobian.flat_map, point, self.adjoint, exact=True)
        used = equation.lifted.tensors
        if not self.known or not {id(part) for part in used if part.requires_grad} <= set(map(id, self.inputs)):
            raise RuntimeError(HIDDEN)
        # Partial derivatives: one input may be a function of another.
        apart = [part.view_as(part) for part in used]
        root = Root.apply(equation, point, *apart)
        wanted = {id(part): copy for part, copy in zip(used, apart, strict=True) if copy.requires_grad}
        gradients = torch.autograd.grad(root, list(wanted.values()), g, create_graph=True, allow_unused=True)
        found = dict(zip(wanted, gradients, strict=True))
        return [found.get(id(part)) for part in self.inputs]


class _ReplaceGradient(torch.autograd.Function):
    """The identity, with a backward that the caller chooses.

    Where the gradient is to be differentiated exactly, the inputs receive it directly and not through `value`.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, backward: Callable[[Tensor], Tensor], again: Again | None, *inputs: Tensor
    ) -> Tensor:
        ctx.replace = backward
        ctx.again = again
        ctx.inputs = len(inputs)
        return value.detach()  # no copy: a write to it is detected, because both share one version counter

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.again is not None and torch.is_grad_enabled():
            return None, None, None, *ctx.again(g)
        return ctx.replace(g), None, None, *[None] * ctx.inputs
