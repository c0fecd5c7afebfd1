"""Semantic segmentation."""

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from deq_lightning.configured import check_at_least
from deq_lightning.estimators import JacobianPenalty
from deq_lightning.models import Equilibrium, Network
from deq_lightning.tasks.base import ImplicitTask, solver_columns

Batch = tuple[Tensor, Tensor]
IGNORED = 255  # label of the pixels that are of no class


class SemanticSegmentation(ImplicitTask):
    """Classifies every pixel by cross-entropy, and reports accuracy and mean intersection over union.

    Images (batch, channels, height, width) come with labels (batch, height, width), where 255 is of no class and
    counts nowhere. Logs `train_loss`, `solver_steps` and `solver_residual` every step; of whole splits `val_loss`
    (mean over the images), `val_acc` (share of the pixels), `val_miou` (mean over the classes that occur), the same
    with `test_`, and the solver's figures there under the same prefixes.

    Args:
        net: the model; maps images to logits (batch, num_classes, height, width) of any resolution, which are brought
            to that of the labels by bilinear interpolation.
        num_classes: classes of a pixel, 2 or more.
        class_weights: of each class in the loss, positive: the weighted mean over the labelled pixels of a batch. None:
            all the same.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the schedule from the optimizer; stepped after every optimizer step. None: constant.
        penalty: a penalty on the Jacobian at the equilibrium, added to the loss in training. None: no such term.
        compile: whether to compile the cell with `torch.compile`; slow first steps. Not with `penalty`.
        channels_last: whether images and the weights of convolutions are stored with the channels last. None: on a CPU,
            where training steps were measured to be as fast or faster with it.

    Raises:
        ValueError: if `class_weights` are not positive or not as many as the classes.
    """

    class_weights: Tensor

    def __init__(
        self,
        net: Network,
        num_classes: int = 19,
        class_weights: list[float] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        penalty: JacobianPenalty | None = None,
        compile: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__(net, optimizer, lr_scheduler, penalty, compile, channels_last)
        check_at_least(2, num_classes=num_classes)
        weights = [1.0] * num_classes if class_weights is None else class_weights
        if len(weights) != num_classes or not all(weight > 0 for weight in weights):
            raise ValueError(
                f"`class_weights` must be {num_classes} positive numbers, one for each class, got {weights}."
            )
        self.register_buffer("class_weights", torch.tensor(weights), persistent=False)
        metrics: dict[str, Metric | MetricCollection] = {
            "acc": MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORED),
            "miou": MulticlassJaccardIndex(num_classes, ignore_index=IGNORED),
        }
        self.val_metrics = MetricCollection(metrics, prefix="val_")
        self.test_metrics = self.val_metrics.clone(prefix="test_")

    def loss(self, batch: Batch) -> tuple[Tensor, list[Equilibrium]]:
        """Return the weighted cross-entropy of a batch of (images, labels); 0 where no pixel is labelled."""
        logits, equilibria = self._logits(batch)
        return self._cross_entropy(logits, batch[1]), equilibria

    def _logits(self, batch: Batch) -> tuple[Tensor, list[Equilibrium]]:
        """Return the logits at the resolution of the labels."""
        x, y = batch
        logits, equilibria = self.net(x)
        return F.interpolate(logits, size=y.shape[1:], mode="bilinear", align_corners=True), equilibria

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        total = F.cross_entropy(logits, y, self.class_weights, ignore_index=IGNORED, reduction="sum")
        labelled = y != IGNORED
        weight = (self.class_weights[y.where(labelled, 0)] * labelled).sum()
        return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)  # PyTorch's own mean over no pixel is NaN

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss, accuracy and intersection over union of the validation split."""
        del batch_idx
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss, accuracy and intersection over union of the test split."""
        del batch_idx
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: Batch, split: str, metrics: MetricCollection) -> None:
        y = batch[1]
        logits, equilibria = self._logits(batch)
        metrics.update(logits.argmax(dim=1), y)
        self.log(f"{split}_loss", self._cross_entropy(logits, y), sync_dist=True, batch_size=len(y))
        self.log_dict(metrics, prog_bar=True, batch_size=len(y))
        self.log_equilibria(equilibria, len(y), prefix=f"{split}_")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return one value per image for each column.

        These are the accuracy on its labelled pixels (NaN without any), the mean over all pixels of the predicted
        class's probability, and the solver's figures.
        """
        del batch_idx
        y = batch[1]
        logits, equilibria = self._logits(batch)
        probability, prediction = logits.softmax(dim=1).max(dim=1)
        right, labelled = (prediction == y).sum(dim=(1, 2)), (y != IGNORED).sum(dim=(1, 2))
        columns = {"accuracy": right / labelled, "probability": probability.mean(dim=(1, 2))}
        return columns | solver_columns(equilibria)
