"""Learning-rate schedules that end with the run."""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, PolynomialLR

from deq_lightning.configured import above, at_least, listed, whole, within


class ToEnd(LRScheduler):
    """What turns a schedule of PyTorch, stepped per optimizer step, into one that ends at the last step of the run.

    PyTorch's own must be told their length, which silently no longer fits once the epochs, the batch size or the
    validation split change. The task tells these when training starts. The rate follows from the step alone, and not
    from the rate before, as in PyTorch: a run that is continued for longer goes on where a run of that length would be.
    """

    length: ClassVar[str]  # what PyTorch calls it

    @abstractmethod
    def rate(self, base: Any, step: int) -> Any:
        """Return the learning rate at an optimizer step, where the first one is `base`."""

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the step that follows."""
        return [self.rate(base, self.last_epoch) for base in self.base_lrs]

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
        eta_min: learning rate at the end, 0 or more.

    Raises:
        ValueError: if `eta_min` is out of its range.
    """

    length = "T_max"

    def __init__(self, optimizer: Optimizer, eta_min: float = 0.0) -> None:
        at_least(0, eta_min=eta_min)
        super().__init__(optimizer, T_max=1, eta_min=eta_min)

    def rate(self, base: Any, step: int) -> Any:
        """Return the rate on the cosine."""
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * min(1, step / self.T_max))) / 2


class PolynomialToEnd(ToEnd, PolynomialLR):
    """Polynomial decay, per optimizer step: (1 − step / steps of the run) to a power, times the first learning rate.

    Args:
        optimizer: whose learning rate decays.
        power: of the polynomial, 0 or more; 1 decays linearly.

    Raises:
        ValueError: if `power` is out of its range.
    """

    length = "total_iters"

    def __init__(self, optimizer: Optimizer, power: float = 1.0) -> None:
        at_least(0, power=power)
        super().__init__(optimizer, total_iters=1, power=power)

    def rate(self, base: Any, step: int) -> Any:
        """Return the rate on the polynomial."""
        return base * (1 - min(1, step / self.total_iters)) ** self.power


class StepsToEnd(ToEnd, MultiStepLR):
    """Learning rate that is multiplied by `gamma` each time a given part of the run is over.

    Args:
        optimizer: whose learning rate decays.
        parts: of the run, each in (0, 1).
        gamma: the factor, above 0.

    Raises:
        ValueError: if an argument is out of its range.
    """

    length = "milestones"

    def __init__(self, optimizer: Optimizer, parts: Sequence[float] = (0.5,), gamma: float = 0.1) -> None:
        listed(parts=parts)
        within("(0, 1)", parts=parts)
        above(0, gamma=gamma)
        self.parts = list(parts)
        super().__init__(optimizer, milestones=[], gamma=gamma)

    def end_at(self, steps: int) -> None:
        """Set the number of optimizer steps of the whole run."""
        self.milestones = Counter(round(part * steps) for part in self.parts)

    def rate(self, base: Any, step: int) -> Any:
        """Return the rate after the parts that are over."""
        return base * self.gamma ** sum(count for start, count in self.milestones.items() if start <= step)


class WarmupCosineToEnd(ToEnd):
    """Learning rate that rises linearly to its value, then falls as a cosine to zero at the last step of the run.

    Both count from the first step, so of the cosine the part before the end of the warm-up is left out: at step t, with
    the learning rate 1, t / `warmup_steps`, then (1 + cos(π t / steps of the run)) / 2.

    Args:
        optimizer: whose learning rate is scheduled.
        warmup_steps: optimizer steps of the rise, 0 or more. 0: the cosine alone.

    Raises:
        ValueError: if `warmup_steps` is negative.

    References:
        Bai, Kolter and Koltun, "Deep equilibrium models", 2019, arXiv:1909.01377, in the code of its language models.
    """

    length = "total_steps"

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 0) -> None:
        whole(0, warmup_steps=warmup_steps)
        self.warmup_steps = warmup_steps
        self.total_steps = 1
        super().__init__(optimizer)

    def rate(self, base: Any, step: int) -> Any:
        """Return the rate while it rises, then on the cosine."""
        if step < self.warmup_steps:
            return base * step / self.warmup_steps
        return base * (1 + math.cos(math.pi * min(1, step / self.total_steps))) / 2
