"""Classification of images and of rows of numbers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from deq_lightning.configured import one_of
from deq_lightning.models import Equilibrium, Network
from deq_lightning.samples import IMAGES, ROWS
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


class Classification(SupervisedTask):
    """Classifies images or rows of numbers, and reports the accuracy.

    Logs `train_loss`, `solver_steps` and `solver_residual` every step, and `val_loss`, `val_acc`, `test_loss`,
    `test_acc` over whole splits, with the solver's figures there under the same prefixes.

    Args:
        net: the model; maps inputs to logits (batch, classes).
        criterion: the loss, `cross_entropy` or, as for the first MNIST networks of the JFB paper, `squared_error`: the
            mean square of the distance of the logits to the one-hot label.
        evaluate_in_train_mode: whether validation and test leave dropout and batch statistics as in training, as the
            code of the JFB paper does; not for results of your own.
        options: those of `ImplicitTask`, from `optimizer` on.

    Raises:
        ValueError: if the criterion is not known, or `penalty` is wanted with `compile` or without an equilibrium.
    """

    takes: Sequence[str] = (IMAGES, ROWS)

    def __init__(
        self,
        net: Network,
        criterion: Criterion = "cross_entropy",
        evaluate_in_train_mode: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        one_of(CRITERIA, criterion=criterion)
        self.criterion_of = CRITERIA[criterion]
        self.evaluate_in_train_mode = evaluate_in_train_mode
        self.measure(acc=MulticlassAccuracy(average="micro"))

    def answer(self, batch: Batch, split: str) -> tuple[Tensor, Tensor, list[Equilibrium]]:
        """Return all logits and labels of a batch of (inputs, labels)."""
        del split
        x, y = batch
        logits, equilibria = self.net(x)
        return logits, y, equilibria

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss that was chosen."""
        return self.criterion_of(logits, y)

    @property
    def departures(self) -> list[str]:
        """What makes results of this task not comparable."""
        return ["dropout and batch statistics are as in training"] if self.evaluate_in_train_mode else []

    def on_validation_model_eval(self) -> None:
        """Enter evaluation mode, or stay in training mode where that is wanted."""
        self.train(self.evaluate_in_train_mode)

    on_test_model_eval = on_predict_model_eval = on_validation_model_eval


class ImageClassification(Classification):
    """Classifies images, and nothing else: `Classification` with the arguments and figures that it has.

    Saved configs and checkpoints hold this name.
    """

    takes = (IMAGES,)
