"""The exact gradient of a fixed point."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deq_lightning.gradients.adjoint import attach_adjoint
from deq_lightning.gradients.base import GradientStrategy
from deq_lightning.gradients.inverse import solve_for_both
from deq_lightning.gradients.jacobian import Product
from deq_lightning.gradients.root import Adjoint
from deq_lightning.solvers import GMRES, FixedPointMap, Solution, Solver
from deq_lightning.solvers.transforms import transformed
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
        reuse_inverse: whether to start and precondition the adjoint solve with the inverse Jacobian that the model's
            `Broyden` solver has built, as SHINE does with refinement. On stiff cells this is several times more exact
            for the same number of products, on others less; the solver's history must be long, and stays in memory
            until backward.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Bai et al., "Deep equilibrium models", 2019, arXiv:1909.01377, Theorem 1.
        Geng et al., "On training implicit models", 2021, arXiv:2111.05177, Eq. 4.
        Ramzi et al., "SHINE: sharing the inverse estimate from the forward pass for bi-level optimization and implicit
        models", ICLR 2022, arXiv:2106.00553.
    """

    def __init__(
        self,
        pretrain_steps: int = 0,
        unroll_steps: int = 10,
        adjoint_solver: Solver | None = None,
        reuse_inverse: bool = False,
    ) -> None:
        super().__init__(pretrain_steps, unroll_steps)
        self.adjoint_solver = adjoint_solver or GMRES()
        self.reuse_inverse = reuse_inverse
        self.adjoint_solutions: list[Solution] = []

    def solve_and_attach(self, f: FixedPointMap, z0: State, solver: Solver) -> tuple[State, Solution]:
        """Solve and attach the gradient, with the solver's estimate of (I − J)⁻¹ if `reuse_inverse` is set.

        Raises:
            CombinationError: if `reuse_inverse` is set and the solver builds no inverse.
        """
        if not self.reuse_inverse:
            return super().solve_and_attach(f, z0, solver)
        solution, inverse = solve_for_both(f, z0, solver, "`reuse_inverse`")
        if inverse is None:
            return self.attach(f, solution.z), solution
        adjoint, first = self._adjoint(), self._adjoint(inverse)
        return attach_adjoint(f, solution.z, adjoint, exact=True, first=first), solution

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return f(z) with the implicit gradient, whose derivatives of every order and mode are exact as well.

        Backward appends the reports of the adjoint solves, without their `z`, to `adjoint_solutions`; the next `attach`
        begins a new list.
        """
        return attach_adjoint(f, z, self._adjoint(), exact=True)

    def _adjoint(self, precondition: Callable[[Tensor], Tensor] | None = None) -> Adjoint:
        """Return the adjoint solve, of w ↦ w + P(Jᵀw + g − w) from P g if there is a preconditioner P."""
        if self.adjoint_solutions:
            self.adjoint_solutions = []
        reports = self.adjoint_solutions

        def solve(jacobian: Product, g: Tensor) -> Tensor:
            # Scaled to about unit length: otherwise products in half precision could overflow inside the solver, which
            # steps around non-finite values, and a loss scaler would never notice. A power of two keeps every bit.
            norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
            size = norm.clamp_min(torch.finfo(norm.dtype).tiny).log2().floor().exp2()
            unit = g / size

            f = AdjointMap(jacobian, unit) if precondition is None else Preconditioned(jacobian, unit, precondition)
            f.whole_budget = torch.compiler.is_compiling()
            solution = self.adjoint_solver.solve(f, f.start, scale=(norm / size)[:, 0])
            if not transformed() and not torch.compiler.is_compiling():
                reports.append(replace(solution, z=()))  # a state kept here would outlive the step
            assert isinstance(solution.z, Tensor)
            return size * solution.z

        return solve


class AdjointMap:
    """The affine map w ↦ Jᵀw + g, whose fixed point is the adjoint.

    Args:
        jacobian: J.
        g: (batch, dim) the incoming gradient.
    """

    whole_budget = False

    def __init__(self, jacobian: Product, g: Tensor) -> None:
        self.jacobian = jacobian
        self.g = g
        self.start = g
        self.transposed = jacobian  # v ↦ J v, for solvers that need the transpose of the map itself

    def __call__(self, w: Tensor) -> Tensor:
        """Evaluate the map."""
        return self.jacobian.transposed(w) + self.g


class Preconditioned:
    """The map w ↦ w + P(Jᵀw + g − w), which has the same fixed point.

    Args:
        jacobian: J.
        g: (batch, dim) the incoming gradient.
        inverse: P, an estimate of (I − Jᵀ)⁻¹.
    """

    whole_budget = False

    def __init__(self, jacobian: Product, g: Tensor, inverse: Callable[[Tensor], Tensor]) -> None:
        self.adjoint = AdjointMap(jacobian, g)
        self.inverse = inverse
        self.start = inverse(g)

    def __call__(self, w: Tensor) -> Tensor:
        """Evaluate the map."""
        return w + self.inverse(self.adjoint(w) - w)
