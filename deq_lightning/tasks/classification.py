"""Image classification."""

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from deq_lightning.estimators import JacobianPenalty
from deq_lightning.models import Equilibrium, Network
from deq_lightning.tasks.base import ImplicitTask

Batch = tuple[Tensor, Tensor]


class ImageClassification(ImplicitTask):
    """Classifies images by cross-entropy, and reports the accuracy.

    Logs `train_loss`, `solver_steps` and `solver_residual` every step, and `val_loss`, `val_acc`, `test_loss`,
    `test_acc` over whole splits, with the solver's figures there under the same prefixes.

    Args:
        net: the model; maps images to logits.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the schedule from the optimizer; stepped after every optimizer step. None: constant.
        penalty: a penalty on the Jacobian at the equilibrium, added to the loss in training. None: no such term.
        compile: whether to compile the cell with `torch.compile`; slow first steps. Not with `penalty`.
        channels_last: whether images and the weights of convolutions are stored with the channels last.
    """

    def __init__(
        self,
        net: Network,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        penalty: JacobianPenalty | None = None,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(net, optimizer, lr_scheduler, penalty, compile, channels_last)
        self.val_acc = MulticlassAccuracy(average="micro")
        self.test_acc = MulticlassAccuracy(average="micro")

    def loss(self, batch: Batch) -> tuple[Tensor, list[Equilibrium]]:
        """Return the cross-entropy of a batch of (images, labels)."""
        x, y = batch
        logits, equilibria = self.net(x)
        return F.cross_entropy(logits, y), equilibria

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of the validation split."""
        del batch_idx
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of the test split."""
        del batch_idx
        self._evaluate(batch, "test", self.test_acc)

    def _evaluate(self, batch: Batch, split: str, accuracy: MulticlassAccuracy) -> None:
        x, y = batch
        logits, equilibria = self.net(x)
        accuracy(logits, y)
        self.log(f"{split}_loss", F.cross_entropy(logits, y), sync_dist=True, batch_size=len(y))
        self.log(f"{split}_acc", accuracy, prog_bar=True, batch_size=len(y))
        self.log_equilibria(equilibria, len(y), prefix=f"{split}_")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return one value per sample for each column: prediction, its probability, the label, the solver's figures."""
        del batch_idx
        x, y = batch
        logits, equilibria = self.net(x)
        probability, prediction = logits.softmax(dim=1).max(dim=1)
        columns = {"prediction": prediction, "probability": probability, "label": y}
        solutions = [equilibrium.solution for equilibrium in equilibria if equilibrium.solution is not None]
        if solutions:
            columns["solver_steps"] = torch.stack([solution.steps for solution in solutions]).sum(dim=0)
            columns["solver_residual"] = torch.stack([solution.residual for solution in solutions]).amax(dim=0)
        return columns
