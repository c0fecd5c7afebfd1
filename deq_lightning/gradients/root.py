"""A fixed point as a pure function: for transforms of `torch.func`, forward mode, and derivatives of the gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deq_lightning.gradients.jacobian import Linearisation, Product, Transposed
from deq_lightning.gradients.lifted import Lifted
from deq_lightning.solvers import FixedPointMap
from deq_lightning.solvers.flat_map import FlatMap
from deq_lightning.state import State, pack, unpack

Adjoint = Callable[[Product, Tensor], Tensor]  # from a product with M, and g, to the w (nearly) with w = Mᵀ w + g


def attach_root(f: FixedPointMap, z: State, adjoint: Adjoint, exact: bool) -> State:
    """Return f(z) with the derivatives of a fixed point, of every order and in every mode.

    Args:
        f: the map.
        z: its fixed point.
        adjoint: solves the linear equations.
        exact: whether it does, so that z can be differentiated in its turn. Otherwise z is a constant, and the adjoint
            is differentiated as it is written.
    """
    with torch.inference_mode(False):
        point = _plain(pack(z).detach())
        equation = FixedPoint(FlatMap(f, like=z, device=point.device.type), point, adjoint, exact)
        root = Root.apply(equation, point, *map(_plain, equation.lifted.tensors))
        return unpack(equation.lifted.fz.detach() + (root - root.detach()), z)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


class Equation(ABC):
    """An equation z = F(z, tensors) for (batch, dim) tensors.

    Args:
        adjoint: solves w = Jᵀ w + g, and w = J w + g, where J is the Jacobian of F.
        exact: whether it does.
    """

    constants = 0  # of its tensors, so many at the beginning have no influence

    def __init__(self, adjoint: Adjoint, exact: bool) -> None:
        self.adjoint = adjoint
        self.exact = exact

    @abstractmethod
    def solve(self, *tensors: Tensor) -> Tensor:
        """Return the solution."""

    @abstractmethod
    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """Evaluate F."""

    def product(self, transpose: bool, z: Tensor, tensors: Sequence[Tensor]) -> Product:
        """Return J at z, or Jᵀ."""
        jacobian = Linearisation(lambda z: self(z, *tensors), z)
        return Transposed(jacobian) if transpose else jacobian

    def linear(self, transpose: bool, g: Tensor, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return the w with w = J w + g where J is the Jacobian at z, or its transpose; differentiably."""
        if self.exact:
            return Root.apply(Linear(self, transpose), g, z, *tensors)
        return self.adjoint(self.product(not transpose, z, tensors), g)


class FixedPoint(Equation):
    """The equation of an equilibrium; its tensors are a solution, and then those that f uses.

    Args:
        f: the map.
        point: the solution.
        adjoint: solves its linear equations.
        exact: whether it does.
    """

    constants = 1

    def __init__(self, f: FlatMap, point: Tensor, adjoint: Adjoint, exact: bool) -> None:
        super().__init__(adjoint, exact)
        self.lifted = Lifted(f, point)
        if f.half is not None:
            torch.clear_autocast_cache()  # of weights cast without a graph

    def solve(self, *tensors: Tensor) -> Tensor:
        """Return the solution, which is known."""
        return tensors[0].clone()

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """Evaluate f."""
        return self.lifted.at(tensors[1:])(z)


class Linear(Equation):
    """The equation w = M w + g; its tensors are g, then a point and the tensors of another equation.

    Args:
        equation: the other equation, whose Jacobian at the point is M.
        transpose: whether M is its transpose instead.
    """

    def __init__(self, equation: Equation, transpose: bool) -> None:
        super().__init__(equation.adjoint, exact=True)
        self.equation = equation
        self.transpose = transpose

    def solve(self, *tensors: Tensor) -> Tensor:
        """Solve it."""
        g, point, *others = tensors
        return self.adjoint(self.equation.product(not self.transpose, point, others), g)

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """Evaluate the right-hand side."""
        g, point, *others = tensors
        return self.equation.product(self.transpose, point, others)(z) + g


class Root(torch.autograd.Function):
    """The solution of an equation as a function of its tensors.

    Both derivatives are solutions of linear equations, and so are differentiated by this function in their turn.
    """

    @staticmethod
    def forward(equation: Equation, *tensors: Tensor) -> Tensor:
        """Solve the equation."""
        return equation.solve(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the derivatives need."""
        ctx.equation = inputs[0]
        ctx.save_for_backward(output, *inputs[1:])
        ctx.save_for_forward(output, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Solve w = Jᵀ w + g and send w on to the tensors."""
        point, tensors, places, right = _at(ctx.equation, ctx.saved_tensors)
        w = ctx.equation.linear(True, g, point, tensors)
        gradients: list[Tensor | None] = [None] * len(tensors)
        pulled = torch.func.vjp(right, *(tensors[place] for place in places))[1](w)
        for place, gradient in zip(places, pulled, strict=True):
            gradients[place] = gradient
        return None, *gradients

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        """Solve t = J t + ∂F·(tangents)."""
        with forward_ad._set_fwd_grad_enabled(True):  # PyTorch turns it off, and with it all outer levels
            point, tensors, places, right = _at(ctx.equation, [_primal(tensor) for tensor in ctx.saved_tensors])
            pairs = [(tensors[place], tangents[place]) for place in places]
            moves = [torch.zeros_like(value) if tangent is None else tangent for value, tangent in pairs]
            pushed = Linearisation(right, *(value for value, _ in pairs))(*moves)
            return ctx.equation.linear(False, pushed, point, tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], equation: Equation, *tensors: Tensor) -> tuple[Tensor, int]:
        """Solve one by one: every solve then stops where it would alone."""
        pairs = list(zip(tensors, in_dims[1:], strict=True))
        solved = [
            Root.apply(equation, *(part if dim is None else part.select(dim, i) for part, dim in pairs))
            for i in range(info.batch_size)
        ]
        return torch.stack(solved), 0


def _at(equation: Equation, saved: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[int], Callable[..., Tensor]]:
    """Return where to linearise, the equation's tensors, and F there as a function of those in certain places."""
    root, *tensors = map(torch._C._functorch.unwrap_if_dead, saved)
    point = root if equation.exact else tensors[0]
    differentiable = (tensor.is_floating_point() or tensor.is_complex() for tensor in tensors)
    places = [place for place, yes in enumerate(differentiable) if yes and place >= equation.constants]

    def right(*values: Tensor) -> Tensor:
        arguments = list(tensors)
        for place, value in zip(places, values, strict=True):
            arguments[place] = value
        return equation(point, *arguments)

    return point, tensors, places, right


def _primal(tensor: Tensor) -> Tensor:
    return forward_ad.unpack_dual(tensor).primal if tensor.is_floating_point() or tensor.is_complex() else tensor
