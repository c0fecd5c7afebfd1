"""The solver's own estimate of the inverse, as a gradient."""

import torch
from torch import Tensor

from deq_lightning.configured import at_least
from deq_lightning.gradients.adjoint import attach_adjoint
from deq_lightning.gradients.base import GradientStrategy
from deq_lightning.gradients.inverse import solve_for_both
from deq_lightning.gradients.jacobian import Product
from deq_lightning.solvers import FixedPointMap, Solution, Solver
from deq_lightning.state import State, mix


class SHINE(GradientStrategy):
    r"""The gradient from the inverse Jacobian that the model's `Broyden` solver has built on its way.

    Replaces :math:`(I - J^\top)^{-1} g` by :math:`H^\top g`, with H the solver's low-rank estimate of
    :math:`(I - J)^{-1}`, which costs no vector-Jacobian product. The solver's history must be long, and stays in memory
    until backward. Where the equilibrium was found in few steps H is crude, and may be far too long: such a sample
    gets g itself, as with `JFB`. Refined by a few products with J it is `Implicit(reuse_inverse=True)`.

    Args:
        pretrain_steps: optimizer steps of plain unrolling before the equilibrium is solved.
        unroll_steps: applications of the cell in that stage.
        fallback: a sample whose ‖Hᵀg‖ is above `fallback` times ‖g‖ gets g, 1 or more.

    Raises:
        ValueError: if an argument is out of its range.
        CombinationError: in a forward pass, if the model's solver builds no inverse.

    References:
        Ramzi et al., "SHINE: sharing the inverse estimate from the forward pass for bi-level optimization and implicit
        models", ICLR 2022, arXiv:2106.00553.
    """

    def __init__(self, pretrain_steps: int = 0, unroll_steps: int = 10, fallback: float = 1.8) -> None:
        super().__init__(pretrain_steps, unroll_steps)
        at_least(1, fallback=fallback)
        self.fallback = fallback

    def solve_and_attach(self, f: FixedPointMap, z0: State, solver: Solver) -> tuple[State, Solution]:
        """Solve, and attach the gradient that the solver's estimate makes."""
        solution, inverse = solve_for_both(f, z0, solver, "`SHINE`")
        if inverse is None:
            return self.attach(f, solution.z), solution

        def adjoint(jacobian: Product, g: Tensor) -> Tensor:
            del jacobian
            w = inverse(g)
            length, of_g = (torch.linalg.vector_norm(one, dim=1, keepdim=True) for one in (w, g))
            return torch.where(length <= self.fallback * of_g, w, g)  # g also where w is not finite

        return attach_adjoint(f, solution.z, adjoint), solution

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return f(z) with the graph of this one evaluation, where the solver has left no estimate."""
        return mix(z, f(z), 1)
