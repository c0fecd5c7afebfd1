"""Learning-rate schedules that end with the run."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR


class CosineToEnd(CosineAnnealingLR):
    """Cosine annealing, per optimizer step, that reaches its minimum at the last step of the run.

    PyTorch's own `CosineAnnealingLR` must be told `T_max`, which silently no longer fits once the epochs, the batch
    size or the validation split change. The task tells this one when training starts.

    Args:
        optimizer: whose learning rate is annealed.
        eta_min: learning rate at the end.
    """

    def __init__(self, optimizer: Optimizer, eta_min: float = 0.0) -> None:
        super().__init__(optimizer, T_max=1, eta_min=eta_min)

    def end_at(self, steps: int) -> None:
        """Set the number of optimizer steps of the whole run."""
        self.T_max = steps

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position but keep the end: a resumed run may be longer than the first was meant to be."""
        super().load_state_dict({**state_dict, "T_max": self.T_max})
