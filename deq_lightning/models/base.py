"""What a task trains, and what an implicit model is: three functions and one equation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from deq_lightning.gradients import UPG, GradientStrategy
from deq_lightning.models.layers.frozen import frozen
from deq_lightning.solvers import Anderson, FixedPointMap, Partition, Solution, Solver
from deq_lightning.state import State


class Equilibrium(NamedTuple):
    """One equilibrium of a forward pass, for penalties, logging and audits.

    `f` stays the map that was solved, with its dropout masks and weights; `solution` is None if nothing was solved
    (the unrolled stage).
    """

    f: FixedPointMap
    z: State
    solution: Solution | None


class CellMap:
    """The map z ↦ cell(z, u) of one forward pass.

    Args:
        cell: the equilibrium module.
        u: the injection.
        separable: whether no sample's value depends on which others are in the batch.
        partition: the samples, where they are not the rows of dimension 0.
    """

    def __init__(
        self, cell: Callable[[Any, Any], Any], u: Any, separable: bool, partition: Partition | None = None
    ) -> None:
        self.cell = cell
        self.u = u
        self.separable = separable
        self.partition = partition

    def __call__(self, z: State) -> State:
        """Evaluate the cell."""
        return self.cell(z, self.u)

    def subset(self, rows: Tensor) -> "CellMap | None":
        """Return the map of the samples `rows` (indices into the batch), or None if they cannot be separated."""
        if not self.separable:
            return None
        return CellMap(self.cell, tree_map_only(Tensor, lambda part: part[rows], self.u), separable=True)


class Network(nn.Module, ABC):
    """What the tasks train. Most are an `ImplicitModel`; one without an equilibrium returns an empty list of them."""

    @abstractmethod
    def forward(self, x: Any) -> tuple[Any, list[Equilibrium]]:
        """Return the prediction and the equilibria behind it (several for stacked implicit layers)."""

    def project(self, equilibria: Sequence[Equilibrium]) -> None:
        """Bring the parameters back to where the model is well-posed, where it needs that.

        The task calls this after every optimizer step, and nothing does in evaluation. Gradients are off; under several
        processes all must come to the same parameters.

        Args:
            equilibria: those of the step, detached: their maps already have the new parameters, except for weights that
                were computed once for the solve.
        """
        del equilibria


class ImplicitModel(Network):
    """A model whose hidden state solves z* = cell(z*, u) with u = inject(x), and whose output is readout(z*).

    Subclasses implement the three functions (Geng et al. 2021, Table 5). They know neither the solver nor the gradient:
    swap these by assigning `model.solver` and `model.gradient`.

    Args:
        solver: finds z*. None: `Anderson()`.
    """

    compiled_cell: Callable[..., Any] | None = None

    def __init__(self, solver: Solver | None = None) -> None:
        super().__init__()
        self.solver: Solver = solver or Anderson()
        self.gradient: GradientStrategy = UPG()

    @abstractmethod
    def inject(self, x: Any) -> Any:
        """Return the injection u of the input; ordinary layers, run once."""

    @abstractmethod
    def cell(self, z: Any, u: Any) -> Any:
        """Return the equilibrium module at state z; dimension 0 of every tensor in z and u is the batch."""

    @abstractmethod
    def readout(self, z: Any) -> Tensor:
        """Return the prediction of the equilibrium; ordinary layers, run once."""

    def initial_state(self, u: Any) -> State:
        """Return where the solver starts: zeros of the shape of the injection."""
        return self.zeros(u.shape)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Return zeros in the dtype of the parameters: under autocast the state stays in full precision."""
        return next(self.parameters()).new_zeros(shape)

    @property
    def separable(self) -> bool:
        """Whether the cell may be evaluated for some samples alone: the solver then leaves out those it is done with.

        In training masks may be drawn per sample and statistics taken over the batch, so only in evaluation. A model
        whose samples interact, or whose injection holds tensors without a batch dimension, answers False.
        """
        return not self.training

    def partition(self, u: Any) -> Partition | None:
        """Return the samples of a state that holds several in one row of dimension 0, as a batch of graphs does."""
        del u
        return None

    def equilibrium(self, u: Any) -> Equilibrium:
        """Solve z* = cell(z*, u) and attach the gradient."""
        clone = frozen(self)
        cell = clone.cell if self.compiled_cell is None else partial(self.compiled_cell, clone)
        f = CellMap(cell, u, self.separable, self.partition(u))
        solver = self.solver if self.training else self.solver.for_evaluation()
        z, solution = self.gradient.fixed_point(f, self.initial_state(u), solver)
        return Equilibrium(f, z, solution)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the cell, which is what is evaluated many times, with the arguments of `torch.compile`.

        Copies and pickles of the model are not compiled. A compiled cell cannot be differentiated twice.
        """
        # Adjoint solves go through one graph many times, so its buffers must not be given away by the first pass. Torch
        # asks for this setting in every backward pass, so that a context around the compilation would not do.
        torch._functorch.config.donated_buffer = False
        self.compiled_cell = torch.compile(type(self).cell, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "compiled_cell"}

    def forward(self, x: Any) -> tuple[Any, list[Equilibrium]]:
        """Return the prediction and the equilibrium behind it."""
        equilibrium = self.equilibrium(self.inject(x))
        return self.readout(equilibrium.z), [equilibrium]
