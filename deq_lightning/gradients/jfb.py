"""Jacobian-free backpropagation."""

from deq_lightning.gradients.base import GradientStrategy
from deq_lightning.solvers import FixedPointMap, Solution, Solver
from deq_lightning.state import State, mix, pack, unpack


class JFB(GradientStrategy):
    r"""Jacobian-free backpropagation: differentiate one step at the fixed point, as if :math:`(I - J)^{-1}` were I.

    The cheapest gradient, and a descent direction where the cell is contractive enough. Equal to `UPG(k=1, damping=1)`
    and `NPG(k=1, damping=1)`. Parameters and injection receive :math:`(\partial f/\partial\cdot)^\top g`, which is
    MIND's Eq. 10; by default the start receives nothing, since an equilibrium does not depend on it.

    Args:
        pretrain_steps: optimizer steps of plain unrolling before the equilibrium is solved.
        unroll_steps: applications of the cell in that stage.
        through_start: whether the start z0 receives :math:`J^\top g`, as if the last iterate but one were z0 plus a
            constant (MIND's Eq. 11). For models whose input is the start and not an injection.

    References:
        Fung et al., "JFB: Jacobian-free backpropagation for implicit networks", AAAI 2022, arXiv:2103.12803.
        Mathur, Pearlmutter and Plis, "MIND over body: adaptive thinking using dynamic computation", ICLR 2025.
    """

    def __init__(self, pretrain_steps: int = 0, unroll_steps: int = 10, through_start: bool = False) -> None:
        super().__init__(pretrain_steps, unroll_steps)
        self.through_start = through_start

    def solve_and_attach(self, f: FixedPointMap, z0: State, solver: Solver) -> tuple[State, Solution]:
        """Solve and attach the step, to the start as well if `through_start` is set."""
        solution = solver.solve(f, z0)
        z = solution.z
        if self.through_start:
            start = pack(z0)
            z = unpack(pack(z) + (start - start.detach()), z)
        return self.attach(f, z), solution

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return f(z) with the graph of this one evaluation."""
        return mix(z, f(z), 1)
