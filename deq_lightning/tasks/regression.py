"""Numbers to predict."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from deq_lightning.configured import CombinationError, sizes
from deq_lightning.models import Equilibrium, Network
from deq_lightning.samples import IMAGE_NUMBERS, ROW_NUMBERS, NumberSource
from deq_lightning.tasks.supervised import SupervisedTask


class Determination(R2Score):
    """R², the share of the variance that is predicted; NaN for a single sample, which has none."""

    def compute(self) -> Tensor:
        """Return it, over all that was seen."""
        return super().compute() if self.total > 1 else torch.full((), torch.nan, device=self.total.device)


class Regression(SupervisedTask):
    """Predicts one number or several of every sample, and reports R², which ranks models.

    The network is trained by the mean squared error of standardised targets: with mean 0 and standard deviation 1 over
    the training samples, if the data module says what these are (`target_statistics`), as ours do. They are kept in
    checkpoints, and predictions, like all figures but the loss, are in the units of the data.

    Logs `train_loss`, `solver_steps` and `solver_residual` every step, and over whole splits `val_loss`, `val_r2`,
    `val_mse`, `val_mae` (means over the targets), and the same with `test_`, with the solver's figures there under the
    same prefixes.

    Args:
        net: the model; maps inputs to (batch, targets).
        targets: numbers to predict of each sample, 1 or more.
        options: those of `ImplicitTask`, from `optimizer` on.

    Raises:
        ValueError: if `targets` is out of its range, or `penalty` is wanted with `compile` or without an equilibrium.
        CombinationError: from `setup` and the steps, if task or network are not made for the data.
    """

    takes = (ROW_NUMBERS, IMAGE_NUMBERS)
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, net: Network, targets: int = 1, **options: Any) -> None:
        super().__init__(net, **options)
        sizes(targets=targets)
        self.targets = targets
        self.register_buffer("target_mean", torch.zeros(targets))
        self.register_buffer("target_std", torch.ones(targets))
        self.measure(r2=Determination(), mse=MeanSquaredError(), mae=MeanAbsoluteError())

    def setup(self, stage: str) -> None:
        """Prepare, and before training take the statistics of the targets; those of a checkpoint come after."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, NumberSource):
            mean, std = data.target_statistics()
            self.target_mean.copy_(torch.tensor(mean))
            self.target_std.copy_(torch.tensor(std))

    def forward(self, x: Any) -> Tensor:
        """Return the predictions in the units of the data, (batch, targets)."""
        return self.in_units(self.net(x)[0])

    def in_units(self, outputs: Tensor) -> Tensor:
        """Return standardised numbers in the units of the data."""
        return outputs.to(self.target_mean) * self.target_std + self.target_mean

    def answer(self, batch: Any, split: str) -> tuple[Tensor, Any, list[Equilibrium]]:
        """Return standardised predictions, and the targets of a batch of (inputs, targets), both (batch, targets)."""
        del split
        x, y = batch
        outputs, equilibria = self.net(x)
        return outputs, None if y is None else self._checked(y, outputs), equilibria

    def _checked(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Return the targets (batch, targets), of which there must be as many as outputs."""
        y = y.reshape(len(y), -1)
        if outputs.shape != y.shape or outputs.shape[1] != self.targets:
            raise CombinationError(
                f"`{type(self.net).__name__}` must predict the {y.shape[1]} numbers of a sample, and `targets` be as "
                f"many; got an answer {tuple(outputs.shape)} to {len(y)} samples, and `targets={self.targets}`."
            )
        return _wide(y)

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error of standardised targets."""
        wanted = ((y - self.target_mean) / self.target_std).to(self.target_mean)
        return F.mse_loss(logits.to(wanted), wanted)

    def decide(self, logits: Tensor) -> Tensor:
        """Return the predictions in the units of the data."""
        return _wide(self.in_units(logits))

    def columns(self, logits: Tensor, y: Tensor | None) -> dict[str, Tensor]:
        """Return prediction and target, with the name or the number of the target where there are several."""
        names = getattr(getattr(self._trainer, "datamodule", None), "target_names", None)
        names = names or [str(number + 1) for number in range(self.targets)]
        endings = [""] if self.targets == 1 else [f"_{name}" for name in names]
        columns = {"prediction": self.decide(logits), **({} if y is None else {"target": y})}
        return {
            f"{name}{ending}": values[:, number]
            for name, values in columns.items()
            for number, ending in enumerate(endings)
        }


def _wide(values: Tensor) -> Tensor:
    """Return numbers in double precision where the device has it: sums of squares of large ones need it."""
    return values if values.device.type == "mps" else values.double()
