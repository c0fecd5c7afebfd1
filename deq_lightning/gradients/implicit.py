"""The exact gradient of a fixed point."""

from dataclasses import replace

import torch
from torch import Tensor

from deq_lightning.gradients.adjoint import VectorJacobianProduct, attach_adjoint
from deq_lightning.gradients.base import GradientStrategy
from deq_lightning.solvers import GMRES, FixedPointMap, Solution, Solver
from deq_lightning.state import State


class Implicit(GradientStrategy):
    r"""The exact gradient, by the implicit function theorem.

    Backward solves :math:`(I - J^\top) w = g` at :math:`z^*` and sends w through one evaluation of the cell. As exact
    as both solves; costs as many vector-Jacobian products as the adjoint solver takes; O(1) memory. For cheaper,
    biased gradients use `UPG`, `NPG` or `JFB`.

    Args:
        pretrain_steps: optimizer steps of plain unrolling before the equilibrium is solved.
        unroll_steps: applications of the cell in that stage.
        adjoint_solver: any solver; it works on w ↦ Jᵀw + g from w = g, with residuals and tolerance relative to ‖g‖, so
            that the scale of the loss does not matter. None: `GMRES()`.

    References:
        Bai et al., "Deep equilibrium models", 2019, arXiv:1909.01377, Theorem 1.
        Geng et al., "On training implicit models", 2021, arXiv:2111.05177, Eq. 4.
    """

    def __init__(self, pretrain_steps: int = 0, unroll_steps: int = 10, adjoint_solver: Solver | None = None) -> None:
        super().__init__(pretrain_steps, unroll_steps)
        self.adjoint_solver = adjoint_solver or GMRES()
        self.adjoint_solutions: list[Solution] = []

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return f(z) with the implicit gradient.

        As backward goes, `adjoint_solutions` fills with the reports of the adjoint solves, without their `z`; the first
        `attach` after it begins a new list.
        """
        if self.adjoint_solutions:
            self.adjoint_solutions = []
        reports = self.adjoint_solutions

        def solve(vjp: VectorJacobianProduct, g: Tensor) -> Tensor:
            # Of about unit length, or products in half precision would overflow inside the solver, which steps around
            # what is not finite, and a loss scaler would never hear of it. A power of two keeps every bit.
            norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
            size = torch.exp2(torch.frexp(norm).exponent.to(g.dtype))
            unit = g / size
            solution = self.adjoint_solver.solve(lambda w: vjp(w) + unit, unit, scale=(norm / size)[:, 0])
            reports.append(replace(solution, z=()))  # a state kept here would outlive the step
            assert isinstance(solution.z, Tensor)
            return size * solution.z

        return attach_adjoint(f, z, solve)
