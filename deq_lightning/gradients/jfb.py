"""Jacobian-free backpropagation."""

from deq_lightning.gradients.base import GradientStrategy
from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State, mix


class JFB(GradientStrategy):
    r"""Jacobian-free backpropagation: differentiate one step at the fixed point, as if :math:`(I - J)^{-1}` were I.

    The cheapest gradient, and a descent direction where the cell is contractive enough. Equal to `UPG(k=1, damping=1)`
    and `NPG(k=1, damping=1)`; as a one-step gradient it is also the backward of MIND's Eq. 10 to 12.

    Args:
        pretrain_steps: optimizer steps of plain unrolling before the equilibrium is solved.
        unroll_steps: applications of the cell in that stage.

    References:
        Fung et al., "JFB: Jacobian-free backpropagation for implicit networks", AAAI 2022, arXiv:2103.12803.
    """

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return f(z) with the graph of this one evaluation."""
        return mix(z, f(z), 1)
