"""Backpropagation through time, the baseline."""

from deq_lightning.gradients.base import GradientStrategy, unroll
from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State


class Unrolled(GradientStrategy):
    """Plain backpropagation through `unroll_steps` applications of the cell, never solving the equilibrium.

    A weight-tied network of that depth, in evaluation as in training: the baseline that the other strategies are
    compared with. `unroll_steps=1` is the explicit network of the JFB paper. Memory grows linearly with `unroll_steps`.

    Args:
        pretrain_steps: accepted as in every strategy, but the unrolled stage never ends here.
        unroll_steps: applications of the cell, 1 or more.

    Raises:
        ValueError: if an argument is out of its range.
    """

    @property
    def unrolled(self) -> bool:
        """Always True: this strategy is the unrolled stage."""
        return True

    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return the state after `unroll_steps` applications from `z`, with their graph."""
        return unroll(f, z, self.unroll_steps)
