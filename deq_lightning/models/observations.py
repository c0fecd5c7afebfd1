"""What evaluations show of a cell: whether it treats every sample by itself, and whether it draws anew each time."""

from collections.abc import Callable, Hashable

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deq_lightning.models.cell_map import CellMap, UnknownContainerError
from deq_lightning.precision import autocast_dtype
from deq_lightning.state import State, pack, parts


class Observations:
    """What is known of a model's cell, and what has been said of it.

    How samples depend on each other is known for the weights that it was seen with: a coupling may start as zero.

    Args:
        model: whose cell it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__
        self.weights: Hashable = None
        # By which tensors of the injection are as long as the batch: which of them hold its samples; None: not known.
        self.batched: dict[tuple[bool, ...], tuple[bool, ...] | None] = {}
        self.modes: set[bool] = set()  # training or not: those in which it was seen whether the cell draws
        self.said: set[str] = set()

    def takes_apart(self, model: nn.Module, f: CellMap, z: State) -> bool:
        """Say whether the samples of a map can be solved one by one; where they cannot, it becomes inseparable.

        The map is evaluated for that only where the answer is not known for the model's weights.

        Args:
            model: whose map it is.
            f: the map.
            z: where a solve would start.
        """
        f.batch = parts(z)[0].shape[0]
        if f.batch < 2:
            return True
        try:
            as_long = f.batched
        except UnknownContainerError as error:
            f.separable = False
            self._say(f"`{self.name}` is evaluated for all samples until the last has converged: {error}.")
            return True
        weights = _versions(model)
        if weights != self.weights:
            self.weights, self.batched = weights, {}
        if as_long not in self.batched:
            # What was told apart in a batch of another length goes on being told apart.
            candidates = dict.fromkeys([as_long, *filter(None, self.batched.values())])
            self.batched[as_long] = next((which for which in candidates if _same_in_parts(f, z, which)), None)
        f.by_sample = self.batched[as_long]
        if f.by_sample is None:
            f.separable = False
            self._say(
                f"the samples of `{self.name}` are solved together: its cell gives other values where some of them "
                "are left out. If it takes each by itself, its injection must hold tensors with the batch as dimension "
                "0, and what samples share in a container that derives from `deq_lightning.Shared`."
            )
        return f.by_sample is not None

    def watch_draws(self, f: CellMap, training: bool, device: torch.device) -> None:
        """Look at whether the second evaluation of a solve draws random numbers; the first draws the masks."""
        calls = 0

        def watched(evaluate: Callable[[], State]) -> State:
            nonlocal calls
            calls += 1
            if calls != 2:
                return evaluate()
            before, value = _random_states(device), evaluate()
            self.modes.add(training)
            if not all(map(torch.equal, before, _random_states(device))):
                self._say(
                    f"the cell of `{self.name}` draws random numbers at every evaluation, so that it has no "
                    "equilibrium. Use `deq_lightning.models.VariationalDropout` in place of `torch.nn.Dropout`: it "
                    "draws once a solve."
                )
            return value

        if training not in self.modes:
            f.watch = watched

    def _say(self, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            rank_zero_warn(message)


@torch.no_grad()
def _same_in_parts(f: CellMap, z: State, by_sample: tuple[bool, ...]) -> bool:
    """Say whether every second sample and the others have the same values as all together, after one step from `z`.

    Not at `z`, where samples often all have the same state and may depend on each other in no visible way.

    Args:
        f: the map.
        z: a state.
        by_sample: which tensors of the injection hold the samples.
    """
    z = tree_map(Tensor.to, f(z), z)
    expected = f(z)
    count, device = parts(z)[0].shape[0], parts(z)[0].device
    for rows in (torch.arange(first, count, 2, device=device) for first in (0, 1)):
        some, wanted = (tree_map(lambda part, rows=rows: part[rows], state) for state in (z, expected))
        try:
            smaller = CellMap(f.cell, f.u, True, by_sample=by_sample).subset(rows)
            assert smaller is not None
            found = pack(smaller(some))
            distance = torch.linalg.vector_norm(found - pack(wanted), dim=1)
        except Exception:  # whatever a cell may raise that takes the size of the batch for granted
            return False
        size = torch.linalg.vector_norm(pack(wanted), dim=1) + torch.linalg.vector_norm(pack(some), dim=1)
        # Kernels differ with the size of the batch, by far less than this.
        if not (~(distance > _precision(expected) ** (2 / 3) * size)).all():
            return False
    return True


def _random_states(device: torch.device) -> list[Tensor]:
    """Return the states of PyTorch's generators that a computation on the device may draw from."""
    states = [torch.get_rng_state()]
    if device.type not in ("cpu", "meta"):
        states.append(torch.get_device_module(device.type).get_rng_state())
    return states


def _versions(model: nn.Module) -> Hashable:
    """Return what changes whenever a tensor of the model is written to or replaced."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple((id(part), 0 if part.is_inference() else part._version) for part in tensors)


def _precision(fz: State) -> float:
    """Return the relative precision in which a map computes whose value this is."""
    kinds = {part.dtype for part in parts(fz)}
    device = parts(fz)[0].device.type
    half = autocast_dtype(device)
    if half is not None:
        kinds.add(half)
    if device == "cuda" and torch.float32 in kinds:
        kinds.add(torch.float16)  # as many digits as the tensor cores take of single precision where they may
    return max(torch.finfo(kind).eps for kind in kinds)
