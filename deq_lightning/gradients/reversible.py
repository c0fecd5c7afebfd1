"""An iteration that can be walked back, and so needs no memory of its way."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deq_lightning.configured import whole, within
from deq_lightning.gradients.base import GradientStrategy
from deq_lightning.gradients.lifted import Lifted
from deq_lightning.solvers import FixedPointMap, Solution, Solver
from deq_lightning.solvers.flat_map import FlatMap
from deq_lightning.solvers.transforms import transformed
from deq_lightning.state import State, pack, unpack

WIDE = torch.float64  # of the sums, in which rounding has room to grow on the way back
LOST = 1e-8  # relative rounding up to which the way back is walked without a stored state

Pair = tuple[Tensor, Tensor]


class Reversible(GradientStrategy):
    r"""The exact gradient of an iteration that can be run backwards, in the memory of one step.

    From :math:`y_0 = z_0`, N `steps` of :math:`y \leftarrow (1-\beta) y + \beta f(z)`,
    :math:`z \leftarrow (1-\beta) z + \beta f(y)`, two evaluations each, take the place of the model's solver, of
    which only the tolerance is used, for the report. Backward walks the steps back, for which f must have drawn nothing
    anew. It costs two evaluations and two vector-Jacobian products a step, and gives what backpropagation through all
    of them would. States are summed in double precision, and one is stored every few steps, because rounding grows by
    up to :math:`(1-\beta)^{-2}` a step on the way back.

    Args:
        pretrain_steps: optimizer steps of plain unrolling before the equilibrium is solved.
        unroll_steps: applications of the cell in that stage.
        steps: N, 1 or more. The gradient is that of N steps, and that of the equilibrium as far as they reach it.
        beta: β in (0, 1); a state is stored every 5 steps at 0.8, and every 12 at 0.5.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        McCallum, Arora and Foster, "Reversible deep equilibrium models", 2025, arXiv:2509.12917.
    """

    def __init__(self, pretrain_steps: int = 0, unroll_steps: int = 10, steps: int = 8, beta: float = 0.8) -> None:
        super().__init__(pretrain_steps, unroll_steps)
        whole(1, steps=steps)
        within("(0, 1)", "At 1 a step cannot be walked back.", beta=beta)
        self.steps = steps
        self.beta = beta

    @property
    def evaluations(self) -> int:
        """Evaluations of the map in a forward pass besides those that the report counts."""
        return super().evaluations if self.unrolled else 0

    @property
    def stride(self) -> int:
        """Steps that may be walked back from a stored state."""
        growth = (1 - self.beta) ** -2
        return max(1, math.floor(math.log(LOST / torch.finfo(WIDE).eps) / math.log(growth)))

    def solve_and_attach(self, f: FixedPointMap, z0: State, solver: Solver) -> tuple[State, Solution]:
        """Iterate, attach the way back, and report the residual of where it has ended."""
        z = self.attach(f, z0)
        once = solver.changed(max_steps=1, keep="best")  # one more evaluation
        found = once.solve(f, unpack(pack(z).detach(), z0))
        count = 2 * self.steps + 1
        return z, replace(found, steps=torch.full_like(found.steps, count), evaluations=count)

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return the state after the steps from `z`, which counts as a constant."""
        start = pack(z).detach()
        f = FlatMap(f, like=z, device=start.device.type)
        if torch.is_grad_enabled() and not transformed():
            lifted = Lifted(f, start)
            back = Back(f, start, lifted, self.steps, self.beta, self.stride)
            return unpack(_Walked.apply(back, *lifted.tensors), z)
        # Transforms know no way back: for them the same numbers, with the memory of every step.
        wide = start.to(WIDE)
        return unpack(walk(f, (wide, wide), self.beta, self.steps, start.dtype)[1].to(start), z)


def walk(f: Callable[[Tensor], Tensor], pair: Pair, beta: float, steps: int, dtype: torch.dtype) -> Pair:
    """Return the pair of states after some steps.

    Args:
        f: the map.
        pair: y and z, in double precision.
        beta: β.
        steps: how many.
        dtype: in which f is evaluated.
    """
    y, z = pair
    for _ in range(steps):
        y = torch.lerp(y, f(z.to(dtype)).to(WIDE), beta)
        z = torch.lerp(z, f(y.to(dtype)).to(WIDE), beta)
    return y, z


class Back:
    """The way there and back.

    Args:
        f: the map, of (batch, dim) tensors.
        start: (batch, dim) where the way begins.
        lifted: the map as a function of what it uses.
        steps: of the way.
        beta: β.
        stride: steps from one stored state to the next.
    """

    def __init__(self, f: FlatMap, start: Tensor, lifted: Lifted, steps: int, beta: float, stride: int) -> None:
        self.f = f
        self.start = start
        self.lifted = lifted
        self.steps = steps
        self.beta = beta
        self.stride = stride
        self.stored: list[Pair] = []  # at the end of every stride

    @torch.no_grad()
    def forth(self) -> Tensor:
        """Walk there, and return where it ends."""
        wide, dtype = self.start.to(WIDE), self.start.dtype
        pair = wide, wide
        for first in range(0, self.steps, self.stride):
            pair = walk(self.f, pair, self.beta, min(self.stride, self.steps - first), dtype)
            self.stored.append(pair)
        return pair[1].to(dtype)

    def back(self, g: Tensor) -> list[Tensor | None]:
        """Walk back, and return the gradients of what the map uses."""
        beta = self.beta
        tensors = [part.detach().requires_grad_(part.requires_grad) for part in self.lifted.tensors]
        f = self.lifted.at(tensors)
        wanted = [part for part in tensors if part.requires_grad]
        total = [torch.zeros_like(part) for part in wanted]

        def product(at: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            """Return f there and Jᵀ w, and add what the tensors get."""
            with torch.enable_grad():
                point = at.to(self.start.dtype).requires_grad_()
                value = f(point)
            found = torch.autograd.grad(value, [point, *wanted], w.to(value.dtype), materialize_grads=True)
            for sum_, part in zip(total, found[1:], strict=True):
                sum_ += part
            return value.detach().to(WIDE), found[0].to(WIDE)

        of_z, of_y = g.to(WIDE), torch.zeros_like(g, dtype=WIDE)
        for last in range(self.steps, 0, -1):
            if last % self.stride == 0 or last == self.steps:
                y, z = self.stored[math.ceil(last / self.stride) - 1]
            value, through = product(y, beta * of_z)
            z = (z - beta * value) / (1 - beta)
            of_y = of_y + through
            value, through = product(z, beta * of_y)
            y = (y - beta * value) / (1 - beta)
            of_z, of_y = (1 - beta) * of_z + through, (1 - beta) * of_y
        gradients = iter(total)
        return [next(gradients) if part.requires_grad else None for part in tensors]


class _Walked(torch.autograd.Function):
    """The end of the way, whose backward walks it back."""

    @staticmethod
    def forward(ctx: Any, back: Back, *tensors: Tensor) -> Tensor:
        del tensors
        ctx.back = back
        return back.forth()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.back.back(g)
