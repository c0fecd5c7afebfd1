"""Learning-rate schedules that end with the run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, PolynomialLR


class ToEnd(LRScheduler):
    """What turns a schedule of PyTorch, stepped per optimizer step, into one that ends at the last step of the run.

    PyTorch's own must be told their length, which silently no longer fits once the epochs, the batch size or the
    validation split change. The task tells these when training starts.
    """

    length: ClassVar[str]  # what PyTorch calls it

    def end_at(self, steps: int) -> None:
        """Set the number of optimizer steps of the whole run."""
        setattr(self, self.length, steps)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position but keep the end: a resumed run may be longer than the first was meant to be."""
        super().load_state_dict({**state_dict, self.length: getattr(self, self.length)})


class CosineToEnd(ToEnd, CosineAnnealingLR):
    """Cosine annealing, per optimizer step, that reaches its minimum at the last step of the run.

    Args:
        optimizer: whose learning rate is annealed.
        eta_min: learning rate at the end.
    """

    length = "T_max"

    def __init__(self, optimizer: Optimizer, eta_min: float = 0.0) -> None:
        super().__init__(optimizer, T_max=1, eta_min=eta_min)


class PolynomialToEnd(ToEnd, PolynomialLR):
    """Polynomial decay, per optimizer step: (1 − step / steps of the run) to a power, times the first learning rate.

    Args:
        optimizer: whose learning rate decays.
        power: of the polynomial; 1 decays linearly.
    """

    length = "total_iters"

    def __init__(self, optimizer: Optimizer, power: float = 1.0) -> None:
        super().__init__(optimizer, total_iters=1, power=power)


class StepsToEnd(ToEnd, MultiStepLR):
    """Learning rate that is multiplied by `gamma` each time a given part of the run is over.

    Args:
        optimizer: whose learning rate decays.
        parts: of the run, each in (0, 1).
        gamma: the factor.

    Raises:
        ValueError: if a part is out of its range.
    """

    length = "milestones"

    def __init__(self, optimizer: Optimizer, parts: Sequence[float] = (0.5,), gamma: float = 0.1) -> None:
        if not all(0 < part < 1 for part in parts):
            raise ValueError(f"`parts` must be in (0, 1), got {list(parts)}.")
        self.parts = list(parts)
        super().__init__(optimizer, milestones=[], gamma=gamma)

    def end_at(self, steps: int) -> None:
        """Set the number of optimizer steps of the whole run."""
        self.milestones = Counter(round(part * steps) for part in self.parts)
