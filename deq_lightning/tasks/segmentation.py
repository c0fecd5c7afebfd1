"""Semantic segmentation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from deq_lightning.configured import is_number, listed, sizes
from deq_lightning.models import Equilibrium, Network
from deq_lightning.samples import PIXELS
from deq_lightning.tasks.supervised import SupervisedTask

Batch = tuple[Tensor, Tensor]
IGNORED = 255  # label of the pixels that are of no class


class SemanticSegmentation(SupervisedTask):
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
        options: those of `ImplicitTask`, from `optimizer` on.

    Raises:
        ValueError: if `class_weights` are not positive or not as many as the classes.
    """

    class_weights: Tensor
    takes = (PIXELS,)

    def __init__(
        self, net: Network, num_classes: int = 19, class_weights: list[float] | None = None, **options: Any
    ) -> None:
        super().__init__(net, **options)
        sizes(2, num_classes=num_classes)
        weights = [1.0] * num_classes if class_weights is None else class_weights
        listed(class_weights=weights)
        if len(weights) != num_classes or not all(is_number(weight) and weight > 0 for weight in weights):
            raise ValueError(
                f"`class_weights` must be {num_classes} positive numbers, one for each class, got {weights}."
            )
        self.register_buffer("class_weights", torch.tensor(weights), persistent=False)
        self.measure(
            miou=MulticlassJaccardIndex(num_classes, ignore_index=IGNORED),
            acc=MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORED),
        )

    def answer(self, batch: Batch, split: str) -> tuple[Tensor, Tensor, list[Equilibrium]]:
        """Return the logits of a batch of (images, labels) at the resolution of the labels, and these."""
        del split
        x, y = batch
        logits, equilibria = self.net(x)
        size = x.shape[2:] if y is None else y.shape[1:]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=True), y, equilibria

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the weighted cross-entropy; 0 where no pixel is labelled."""
        total = F.cross_entropy(logits, y, self.class_weights, ignore_index=IGNORED, reduction="sum")
        labelled = y != IGNORED
        weight = (self.class_weights[y.where(labelled, 0)] * labelled).sum()
        return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)  # PyTorch's own mean over no pixel is NaN

    def columns(self, logits: Tensor, y: Tensor | None) -> dict[str, Tensor]:
        """Return for each image the accuracy on its labelled pixels (NaN without any) and the mean probability.

        That is the probability of the predicted class, over all pixels.
        """
        probability, prediction = logits.softmax(dim=1).max(dim=1)
        if y is None:
            return {"probability": probability.mean(dim=(1, 2))}
        right, labelled = (prediction == y).sum(dim=(1, 2)), (y != IGNORED).sum(dim=(1, 2))
        return {"accuracy": right / labelled, "probability": probability.mean(dim=(1, 2))}
