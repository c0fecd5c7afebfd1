"""Image classification."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from deq_lightning.estimators import JacobianPenalty
from deq_lightning.models import Equilibrium, Network
from deq_lightning.tasks.supervised import SupervisedTask

Batch = tuple[Tensor, Tensor]
Criterion = Literal["cross_entropy", "squared_error"]


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean square of the distance of every logit to its entry in the one-hot label."""
    return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).to(logits))


CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "squared_error": squared_error,
}


class ImageClassification(SupervisedTask):
    """Classifies images, and reports the accuracy.

    Logs `train_loss`, `solver_steps` and `solver_residual` every step, and `val_loss`, `val_acc`, `test_loss`,
    `test_acc` over whole splits, with the solver's figures there under the same prefixes.

    Args:
        net: the model; maps images to logits.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the schedule from the optimizer; stepped after every optimizer step. None: constant.
        penalty: a penalty on the Jacobian at the equilibrium, added to the loss in training. None: no such term.
        compile: whether to compile the cell with `torch.compile`; slow first steps. Not with `penalty`.
        channels_last: whether images and the weights of convolutions are stored with the channels last. None: on a CPU,
            where training steps were measured to be as fast or faster with it.
        criterion: the loss, `cross_entropy` or, as for the first MNIST networks of the JFB paper, `squared_error`: the
            mean square of the distance of the logits to the one-hot label.
        evaluate_in_train_mode: whether validation and test leave dropout and batch statistics as in training, as the
            code of the JFB paper does; not for results of your own.

    Raises:
        ValueError: if the criterion is not known, or `penalty` is wanted with `compile` or without an equilibrium.
    """

    def __init__(
        self,
        net: Network,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        penalty: JacobianPenalty | None = None,
        compile: bool = False,
        channels_last: bool | None = None,
        criterion: Criterion = "cross_entropy",
        evaluate_in_train_mode: bool = False,
    ) -> None:
        super().__init__(net, optimizer, lr_scheduler, penalty, compile, channels_last)
        if criterion not in CRITERIA:
            raise ValueError(f"`criterion` must be one of {', '.join(CRITERIA)}; got {criterion!r}.")
        self.criterion_of = CRITERIA[criterion]
        self.evaluate_in_train_mode = evaluate_in_train_mode
        self.measure(acc=MulticlassAccuracy(average="micro"))

    def answer(self, batch: Batch, split: str) -> tuple[Tensor, Tensor, list[Equilibrium]]:
        """Return all logits and labels of a batch of (images, labels)."""
        del split
        x, y = batch
        logits, equilibria = self.net(x)
        return logits, y, equilibria

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss that was chosen."""
        return self.criterion_of(logits, y)

    @property
    def departures(self) -> list[str]:
        """What makes results of this task other than they should be."""
        return ["dropout and batch statistics are as in training"] if self.evaluate_in_train_mode else []

    def on_validation_model_eval(self) -> None:
        """Enter evaluation mode."""
        self.train(self.evaluate_in_train_mode)

    on_test_model_eval = on_predict_model_eval = on_validation_model_eval
