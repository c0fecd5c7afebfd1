"""Several labels at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import BinaryF1Score, MultilabelAUROC, MultilabelExactMatch
from torchmetrics.functional.classification import multilabel_auroc
from torchmetrics.utilities import dim_zero_cat

from deq_lightning.configured import CombinationError, sizes, within
from deq_lightning.models import Equilibrium, Network
from deq_lightning.samples import IMAGE_LABELS, ROW_LABELS
from deq_lightning.tasks.supervised import SupervisedTask


class MacroAUROC(MultilabelAUROC):
    """Area under the ROC curve, its mean over the labels that some samples have and some have not; NaN without any.

    For other labels there is no such curve, and torchmetrics counts them as 0.
    """

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return it, over all that was seen."""
        p, y = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        defined = (y.amin(dim=0) == 0) & (y.amax(dim=0) == 1)
        if not defined.any():
            return torch.full((), torch.nan, device=p.device)
        if defined.sum() == 1:  # of which torchmetrics takes no table
            return multilabel_auroc(p[:, defined].repeat(1, 2), y[:, defined].repeat(1, 2), 2, validate_args=False)
        return multilabel_auroc(p[:, defined], y[:, defined], int(defined.sum()), validate_args=False)


class MultiLabel(SupervisedTask):
    """Says of every label whether a sample has it, by binary cross-entropy, and reports the F1, which ranks models.

    Logs `train_loss`, `solver_steps` and `solver_residual` every step, and over whole splits `val_loss` (its mean over
    samples and labels), `val_f1` (micro-averaged, over all samples and labels together), `val_exact_acc` (the share of
    samples that are right in every label), `val_auroc` (the mean over the labels that the split shows both with and
    without), and the same with `test_`, with the solver's figures there under the same prefixes. Tables have columns
    `prediction_NAME` and `label_NAME` for each label, of 0 and 1, with the numbers of labels that have no names.

    Args:
        net: the model; maps inputs to logits (batch, labels).
        num_classes: labels of each sample, 1 or more.
        threshold: a label is predicted where its probability is above this, in (0, 1).
        options: those of `ImplicitTask`, from `optimizer` on.

    Raises:
        ValueError: if an argument is out of its range, or `penalty` is wanted with `compile` or without an equilibrium.
        CombinationError: from `setup` and the steps, if task or network are not made for the data.
    """

    takes = (ROW_LABELS, IMAGE_LABELS)

    def __init__(self, net: Network, num_classes: int = 2, threshold: float = 0.5, **options: Any) -> None:
        super().__init__(net, **options)
        sizes(num_classes=num_classes)
        within("(0, 1)", threshold=threshold)
        self.num_classes = num_classes
        self.threshold = threshold
        self.measure(
            f1=BinaryF1Score(threshold),  # of all numbers together, whatever their shape: the micro average
            exact_acc=MultilabelExactMatch(num_classes, threshold, validate_args=False),
            auroc=MacroAUROC(num_classes, validate_args=False),
        )

    def answer(self, batch: Any, split: str) -> tuple[Tensor, Any, list[Equilibrium]]:
        """Return the logits, and the labels of a batch of (inputs, labels), both (batch, labels)."""
        del split
        x, y = batch
        logits, equilibria = self.net(x)
        shape = (len(x), self.num_classes)
        if logits.shape != shape or (y is not None and y.shape != shape):
            labels = "" if y is None else f" and labels {tuple(y.shape)}"
            raise CombinationError(
                f"`{type(self.net).__name__}` must answer with one logit for each of `num_classes={self.num_classes}` "
                f"labels, as many as the data has, got {tuple(logits.shape)}{labels}."
            )
        return logits, None if y is None else y.long(), equilibria

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the binary cross-entropy, its mean over samples and labels."""
        return F.binary_cross_entropy_with_logits(logits, y.to(logits))

    def decide(self, logits: Tensor) -> Tensor:
        """Return the probabilities, which the metrics compare with `threshold`."""
        return logits.float().sigmoid()

    def columns(self, logits: Tensor, y: Tensor | None) -> dict[str, Any]:
        """Return for each label whether it is predicted, and whether it is true; the probabilities where wanted."""
        probabilities = self.decide(logits)
        parts = {"prediction": (probabilities > self.threshold).long()} | ({} if y is None else {"label": y})
        names = getattr(getattr(self._trainer, "datamodule", None), "class_names", None) or self.class_names
        names = range(self.num_classes) if names is None else names
        table = {f"{part}_{name}": values[:, i] for part, values in parts.items() for i, name in enumerate(names)}
        return table | ({"probabilities": probabilities} if self.every_probability else {})
