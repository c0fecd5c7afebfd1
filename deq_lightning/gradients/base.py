"""The base class of gradient strategies, where solver, gradient and model meet."""

from abc import ABC, abstractmethod
from typing import Any, final

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from deq_lightning.configured import Configured, whole
from deq_lightning.solvers import FixedPointMap, Solution, Solver
from deq_lightning.state import State, mix

ONE_STEP = "For a single undamped step use `gradient=JFB()`."


def unroll(f: FixedPointMap, z: State, steps: int) -> State:
    """Apply `f` `steps` times; ordinary autograd differentiates it."""
    for _ in range(steps):
        z = mix(z, f(z), 1)
    return z


class GradientStrategy(Configured, Callback, ABC):
    """How an equilibrium is differentiated. To write your own strategy, implement `attach`; nothing else is needed.

    It is a Lightning callback so that checkpoints carry its schedule and it can be passed to a trainer, but the hooks
    only move the schedule: the mathematics is in `fixed_point` and `attach`, which are not hooks. Without a trainer set
    `model.gradient = UPG(k=5)`; with a schedule, also count `model.gradient.step += 1` after every optimizer step.

    Args:
        pretrain_steps: optimizer steps of the unrolled stage, in which the cell is applied `unroll_steps` times from
            the initial state and differentiated by backpropagation, in evaluation as in training. 0: no such stage.
        unroll_steps: applications of the cell in the unrolled stage, 1 or more.

    Raises:
        ValueError: if an argument is out of its range.
    """

    through_start = False  # whether the start of a solve receives a gradient, too

    def __init__(self, pretrain_steps: int = 0, unroll_steps: int = 10) -> None:
        whole(0, pretrain_steps=pretrain_steps)
        whole(1, unroll_steps=unroll_steps)
        self.pretrain_steps = pretrain_steps
        self.unroll_steps = unroll_steps
        self.step = 0

    @abstractmethod
    def attach(self, f: FixedPointMap, z: State) -> State:
        """Return the fixed point with the gradient of this strategy.

        Args:
            f: the map; the gradient must reach its parameters and injection.
            z: the fixed point found by the solver, without a graph.

        Returns:
            A state equal to `z` or to a refinement of it, whose backward is the strategy. With gradients off, the same
            state without a backward.
        """

    @property
    def evaluations(self) -> int:
        """Evaluations of the map in a forward pass besides the solver's: in `attach`, or in the unrolled stage."""
        return self.unroll_steps if self.unrolled else 1

    @property
    def unrolled(self) -> bool:
        """Whether this is the unrolled stage."""
        return self.step < self.pretrain_steps

    @final
    def fixed_point(self, f: FixedPointMap, z0: State, solver: Solver) -> tuple[State, Solution | None]:
        """Solve z = f(z) from `z0`, and let `attach` turn the solution into the state that the prediction uses.

        `attach` runs with gradients off too: a model in evaluation mode answers the same with and without gradients,
        and the same as in training except for dropout, batch statistics and the solver's budget. That matters where the
        budget is so short that the strategy's own steps are part of the model.

        Returns:
            The state, and the solver's report on the point that `attach` starts from; None in the unrolled stage, where
            nothing is solved.
        """
        if self.unrolled:
            return unroll(f, z0, self.unroll_steps), None
        return self.solve_and_attach(f, z0, solver)

    def solve_and_attach(self, f: FixedPointMap, z0: State, solver: Solver) -> tuple[State, Solution]:
        """Solve and attach outside the unrolled stage; override it in a strategy that needs more from the solver."""
        solution = solver.solve(f, z0)
        return self.attach(f, solution.z), solution

    @property
    def state_key(self) -> str:
        """One key for all strategies, so that a run resumed with another strategy continues the schedule."""
        return "GradientStrategy"

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the schedule."""
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position in the schedule."""
        self.step = state_dict["step"]

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Set the schedule to the number of optimizer steps so far."""
        del args, kwargs
        self.step = trainer.global_step

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what Lightning binds to every callback: copying a model would otherwise copy its whole task."""
        return {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}
