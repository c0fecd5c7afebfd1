"""Classification of graphs and of their nodes."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy

from deq_lightning.configured import CombinationError
from deq_lightning.models import Equilibrium, Network
from deq_lightning.samples import GRAPHS, NODE_LABELS, NODES
from deq_lightning.tasks.supervised import SupervisedTask


class GraphTask(SupervisedTask):
    """What the tasks on graphs share; a subclass says which predictions and labels of a batch count, and how.

    Batches are `Batch` objects of PyTorch Geometric.

    Args:
        net: the model; maps them to logits.
        options: those of `ImplicitTask`, from `optimizer` to `compile`; its sparse product is never compiled.
    """

    labels: str  # what the task predicts, in words
    network: ClassVar[str]  # a network that predicts them

    @abstractmethod
    def counted(self, logits: Tensor, batch: Any, split: str) -> tuple[Tensor, Tensor]:
        """Return the logits and labels that count in a split."""

    def has_labels(self, batch: Any) -> bool:
        """Say whether graphs have labels."""
        return batch.y is not None

    def answer(self, batch: Any, split: str) -> tuple[Tensor, Any, list[Equilibrium]]:
        """Return the logits and labels that count; of graphs without labels all."""
        logits, equilibria = self.net(batch)
        if batch.y is None:
            return logits, None, equilibria
        if len(logits) != len(batch.y):
            raise CombinationError(
                f"`{type(self.net).__name__}` must predict {self.labels}, {len(batch.y)} in a batch of "
                f"{batch.num_graphs} graphs with {batch.num_nodes} nodes, got {len(logits)}. Choose another "
                f"network, such as `net={self.network}`."
            )
        return *self.counted(logits, batch, split), equilibria


class GraphClassification(GraphTask):
    """Classifies graphs by cross-entropy, and reports the accuracy.

    Batches are `Batch` objects of PyTorch Geometric with a label `y` for each graph. Logs `train_loss`, `solver_steps`
    and `solver_residual` every step, and `val_loss`, `val_acc`, `test_loss`, `test_acc` over whole splits, with the
    solver's figures there under the same prefixes.

    Args:
        net: the model; maps a batch to logits (graphs, classes).
        options: those of `ImplicitTask`, from `optimizer` to `compile`.

    Raises:
        ValueError: if `penalty` is wanted with `compile` or without an equilibrium.
        CombinationError: from `setup` and the steps, if task or network are not made for the data.
    """

    takes = (GRAPHS,)
    labels = "one class for each graph"
    network = "IGNNGraphClassifier"

    def __init__(self, net: Network, **options: Any) -> None:
        super().__init__(net, **options)
        self.measure(acc=MulticlassAccuracy(average="micro"))

    def counted(self, logits: Tensor, batch: Any, split: str) -> tuple[Tensor, Tensor]:
        """Return all logits and labels."""
        del split
        return logits, batch.y

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(logits, y)


class NodeClassification(GraphTask):
    """Classifies the nodes of graphs: each of one class, or each with any of several labels.

    Batches are `Batch` objects of PyTorch Geometric with labels `y`: (nodes,) classes, or (nodes, classes) of 0 and 1
    if `multilabel`. Where graphs have `train_mask`, `val_mask` and `test_mask`, the nodes of the split count (one graph
    can then be all three), otherwise all nodes. Logs `train_loss`, `solver_steps` and `solver_residual` every step, of
    whole splits `val_loss` and `val_acc`, or `val_f1` if `multilabel`, and the same with `test_`, with the solver's
    figures there under the same prefixes.

    Args:
        net: the model; maps a batch to logits (nodes, classes).
        multilabel: whether a node can have several labels. The loss is then the binary cross-entropy, its mean over
            nodes and classes, a label is predicted where the logit is positive, and the figure is the micro-averaged
            F1, over all nodes and classes together.
        options: those of `ImplicitTask`, from `optimizer` to `compile`.

    Raises:
        ValueError: if `penalty` is wanted with `compile` or without an equilibrium.
        CombinationError: from `setup` and the steps, if task or network are not made for the data.
    """

    takes: Sequence[str] = (NODES, NODE_LABELS)
    takes_others = "if `task.multilabel=True`; for one class of each node `task.multilabel=False`"
    network = "IGNNNodeClassifier"

    def __init__(self, net: Network, multilabel: bool = False, **options: Any) -> None:
        super().__init__(net, **options)
        self.multilabel = multilabel
        self.takes = (NODE_LABELS if multilabel else NODES,)
        self.labels = "0 or 1 for every label of each node" if multilabel else "one class for each node"
        if multilabel:
            self.measure(f1=BinaryF1Score())  # of all numbers together, whatever their shape: the micro average
        else:
            self.measure(acc=MulticlassAccuracy(average="micro"))

    def counted(self, logits: Tensor, batch: Any, split: str) -> tuple[Tensor, Tensor]:
        """Return those of the nodes in the split."""
        name = f"{split}_mask"
        return (logits[batch[name]], batch.y[batch[name]]) if name in batch else (logits, batch.y)

    def sample_of(self, batch: Any) -> Tensor:
        """Return the graph of each node."""
        return batch.batch[batch.test_mask] if "test_mask" in batch else batch.batch

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return F.binary_cross_entropy_with_logits(logits, y) if self.multilabel else F.cross_entropy(logits, y)

    def decide(self, logits: Tensor) -> Tensor:
        """Return the class of the largest logit, or where logits are positive."""
        return (logits > 0).long() if self.multilabel else super().decide(logits)

    def columns(self, logits: Tensor, y: Tensor | None) -> dict[str, Any]:
        """Return the prediction, its probability and the label, or how many labels are predicted, true, and both."""
        if not self.multilabel:
            return super().columns(logits, y)
        predicted = logits > 0
        if y is None:
            return {"predicted": predicted.sum(dim=1)}
        true = y > 0
        counts = {"predicted": predicted, "labels": true, "right": predicted & true}
        return {name: values.sum(dim=1) for name, values in counts.items()}
