"""What a task trains, and what an implicit model is: three functions and one equation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deq_lightning.configured import described, given_arguments
from deq_lightning.gradients import UPG, GradientStrategy
from deq_lightning.models.cell_map import CellMap as CellMap
from deq_lightning.models.cell_map import Shared as Shared
from deq_lightning.models.cell_map import Together
from deq_lightning.models.layers.frozen import frozen
from deq_lightning.models.observations import Observations
from deq_lightning.models.partial import embedded, injection_of, resting
from deq_lightning.models.starts import Equilibrium as Equilibrium
from deq_lightning.models.starts import Start as Start
from deq_lightning.models.starts import partly_random, state_of
from deq_lightning.solvers import Anderson, Partition, Solution, Solver
from deq_lightning.solvers.transforms import vectorising
from deq_lightning.state import State, parts

OBSERVATIONS = "_observations"  # of the cell, once there are some
NOT_COPIED = ("compiled_cell", OBSERVATIONS)
EXAMPLES = {"solver": "Anderson()", "gradient": "UPG()"}


class Network(nn.Module, ABC):
    """What the tasks train. Most are an `ImplicitModel`; one without an equilibrium returns an empty list of them."""

    _made_with: dict[str, Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._made_with = given_arguments(self)

    @property
    def made_with(self) -> dict[str, Any] | None:
        """What the constructor was given, as plain data, with the solver of today; None if that is not plain."""
        given = self._made_with
        if given is None or "solver" not in given or not hasattr(self, "solver"):
            return given
        return {**given, "solver": described(self.solver)}

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

    Raises:
        ValueError: if `solver` is not a `Solver`; from `forward`, also if `gradient` is not a strategy.
    """

    compiled_cell: Callable[..., Any] | None = None
    random_start = 0.0  # share of the samples that start at N(0, start_std²) in training: equilibria that do not
    start_std = 1.0  # depend on the start are those that more steps can only improve (Anil et al. 2022)

    def __init__(self, solver: Solver | None = None) -> None:
        super().__init__()
        self.solver: Solver = Anderson() if solver is None else solver
        _check_kind("solver", self.solver, Solver)
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

    def first_state(self, u: Any) -> State:
        """Return where the solver starts: in training mode at random for the share `random_start` of the samples."""
        z0 = self.initial_state(u)
        return partly_random(z0, self.random_start, self.start_std) if self.training and self.random_start else z0

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Return zeros in the dtype of the parameters: under autocast the state stays in full precision."""
        return next(self.parameters()).new_zeros(shape)

    @property
    def separable(self) -> bool:
        """Whether the cell may be evaluated for some samples alone: the solver then leaves out those it is done with.

        In training masks may be drawn per sample and statistics taken over the batch, so only in evaluation. Whether
        samples interact there is found out by evaluating the cell for a part of them, once for given weights: those
        that do are solved together, and stop together. Tensors of the injection whose dimension 0 is not as long as the
        batch, and all in a container that derives from `Shared`, are passed whole.
        """
        return not self.training

    def partition(self, u: Any) -> Partition | None:
        """Return the samples of a state that holds several in one row of dimension 0, as a batch of graphs does."""
        del u
        return None

    def equilibrium(self, u: Any, start: Start | None = None) -> Equilibrium:
        """Solve z* = cell(z*, u) and attach the gradient.

        Args:
            u: the injection.
            start: where the solver starts: a state, or the `Solution` or `Equilibrium` of an earlier call, which starts
                without its graph. None: `initial_state(u)`.
        """
        _check_kind("solver", self.solver, Solver)
        _check_kind("gradient", self.gradient, GradientStrategy)
        clone = frozen(self)
        cell = clone.cell if self.compiled_cell is None else partial(self.compiled_cell, clone)
        f = CellMap(cell, u, self.separable, self.partition(u))
        solver = self.solver.for_mode(self.training)
        z0 = self.first_state(u)
        z0 = z0 if start is None else state_of(start, z0)
        f.separable = f.separable and not vectorising()
        if self.gradient.unrolled or torch.compiler.is_compiling() or parts(z0)[0].is_meta or vectorising():
            z, solution = self.gradient.fixed_point(f, z0, solver)
            return Equilibrium(f, z, solution)
        known = vars(self).setdefault(OBSERVATIONS, Observations(self))
        apart = self.training or f.partition is not None or known.takes_apart(self, f, z0)
        known.watch_draws(f, self.training, parts(z0)[0].device)
        if apart:
            z, solution = self.gradient.fixed_point(f, z0, solver)
        else:
            z, solution = self._solve_together(f, z0, solver)
        f.watch = None
        return Equilibrium(f, z, solution)

    def equilibrium_of(self, u: Any, taking_part: Tensor) -> Equilibrium:
        """Solve for some of the samples alone; the others rest at `initial_state(u)` and cost nothing.

        Under `torch.vmap`, on the meta device and while the model is compiled or exported as a whole, all are solved.

        Args:
            u: the injection of the whole batch; of tensors in it whose dimension 0 is the batch, the solve gets its
                part.
            taking_part: (batch,) of bool, which samples are solved.
        """
        if vectorising() or torch.compiler.is_compiling() or taking_part.is_meta or bool(taking_part.all()):
            return self.equilibrium(u)
        rest, rows = self.initial_state(u), taking_part.nonzero()[:, 0]
        if len(rows) == 0:
            return resting(rest, rows, solved=not self.gradient.unrolled)
        return embedded(self.equilibrium(injection_of(u, rows, len(taking_part))), rows, rest)

    def by_choice(self, u: Any, on: Tensor) -> tuple[Any, Equilibrium]:
        """Solve for the samples that are on, and return the state, which for the others is `initial_state(u)`.

        In training all are solved, because the gradient of a choice needs to know both outcomes: the state is on the
        line between them.

        Args:
            u: the injection.
            on: (batch,) 1 or 0, which may have a gradient.
        """
        one = self.equilibrium(u) if self.training else self.equilibrium_of(u, on > 0)

        def between(off: Tensor, z: Tensor) -> Tensor:
            return torch.lerp(off, z.to(off), on.view(-1, *[1] * (off.ndim - 1)).to(off))

        return tree_map(between, self.initial_state(u), one.z), one

    def _solve_together(self, f: CellMap, z0: State, solver: Solver) -> tuple[State, Solution | None]:
        one = Together(f, z0)
        z, solution = self.gradient.fixed_point(one, one.joined(z0), solver)
        assert solution is not None
        return one.parted(z), replace(solution, z=one.parted(solution.z))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the cell, which is what is evaluated many times, with the arguments of `torch.compile`.

        Copies and pickles of the model are not compiled. A compiled cell cannot be differentiated twice.
        """
        from torch._functorch import config  # which torch itself imports no earlier

        # Adjoint solves go through one graph many times, so its buffers must not be given away by the first pass. Torch
        # asks for this setting in every backward pass, so that a context around the compilation would not do.
        config.donated_buffer = False
        self.compiled_cell = torch.compile(type(self).cell, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in NOT_COPIED}

    def forward(self, x: Any, start: Start | None = None) -> tuple[Any, list[Equilibrium]]:
        """Return the prediction and the equilibrium behind it.

        Args:
            x: the input.
            start: as in `equilibrium`: video, sequences and sweeps start where the last call has ended.
        """
        equilibrium = self.equilibrium(self.inject(x), start)
        return self.readout(equilibrium.z), [equilibrium]


def _check_kind(name: str, value: Any, kind: type) -> None:
    """Raise a ValueError unless a part of a model is what it must be."""
    if not isinstance(value, kind):
        raise ValueError(
            f"`{name}` must be a `{kind.__name__}`, got {value!r}. Pass an object such as `{EXAMPLES[name]}`; for the "
            f"command line to make one, annotate the argument: `{name}: {kind.__name__} | None = None`."
        )
