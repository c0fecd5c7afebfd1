"""Classification of graphs and of their nodes."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy

from deq_lightning.configured import CombinationError
from deq_lightning.estimators import JacobianPenalty
from deq_lightning.models import Equilibrium, Network
from deq_lightning.tasks.supervised import SupervisedTask


class GraphTask(SupervisedTask):
    """What the tasks on graphs share; a subclass says which predictions and labels of a batch count, and how.

    Batches are `Batch` objects of PyTorch Geometric.

    Args:
        net: the model; maps them to logits.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the schedule from the optimizer; stepped after every optimizer step. None: constant.
        penalty: a penalty on the Jacobian at the equilibrium, added to the loss in training. None: no such term.
        compile: whether to compile the cell with `torch.compile`, but for its sparse product; slow first steps. Not
            with `penalty`.
    """

    labels: str  # what the task predicts, in words
    network: ClassVar[str]  # one that does

    def __init__(
        self,
        net: Network,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        penalty: JacobianPenalty | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(net, optimizer, lr_scheduler, penalty, compile, channels_last=False)

    def setup(self, stage: str) -> None:
        """Make sure that task and network are made for the data, where they say what for."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self._check_labels(data)
            self._check_sizes(data)
            self._check_perron(data)

    def _check_labels(self, data: Any) -> None:
        graphs = getattr(data, "test_set", None)
        if graphs is not None and not self.fits(graphs[0]):
            raise CombinationError(
                f"`{type(self).__name__}` needs {self.labels}, `{type(data).__name__}` has labels of shape "
                f"{list(graphs[0].y.shape)} for a graph of {graphs[0].num_nodes} nodes. Type `--model "
                "GraphClassification` for a class of each graph, `--model NodeClassification` for one of each node, "
                "with `--model.multilabel true` for several labels of each node."
            )

    def _check_sizes(self, data: Any) -> None:
        for theirs, ours in {"num_features": "in_features", "num_classes": "num_classes"}.items():
            wanted, got = getattr(data, theirs, None), getattr(self.net, ours, None)
            if wanted is not None and got is not None and wanted != got:
                raise CombinationError(
                    f"`{ours}` of the network must be {wanted} for `{type(data).__name__}`, got {got}. "
                    f"Type `--model.net.{ours} {wanted}`."
                )

    def _check_perron(self, data: Any) -> None:
        bound, perron = getattr(data, "perron", 0.0), getattr(self.net, "perron", math.inf)
        if bound > perron * (1 + 1e-3):  # what is normalised has one of 1, but for rounding
            raise CombinationError(
                f"`perron` of the network must be at least the Perron-Frobenius eigenvalue of every graph of "
                f"`{type(data).__name__}`, {bound:.4f}, got {perron}. Type `--model.net.perron {math.ceil(bound)}`."
            )

    @abstractmethod
    def fits(self, graph: Any) -> bool:
        """Return whether a graph has `labels`."""

    @abstractmethod
    def counted(self, logits: Tensor, batch: Any, split: str) -> tuple[Tensor, Tensor]:
        """Return the logits and labels that count in a split."""

    def answer(self, batch: Any, split: str) -> tuple[Tensor, Tensor, list[Equilibrium]]:
        """Return the logits and labels that count."""
        logits, equilibria = self.net(batch)
        if len(logits) != len(batch.y):
            raise CombinationError(
                f"`{type(self.net).__name__}` must predict {self.labels}, {len(batch.y)} in a batch of "
                f"{batch.num_graphs} graphs with {batch.num_nodes} nodes, got {len(logits)}. Type another "
                f"`--model.net`, such as `{self.network}`."
            )
        return *self.counted(logits, batch, split), equilibria


class GraphClassification(GraphTask):
    """Classifies graphs by cross-entropy, and reports the accuracy.

    Batches are `Batch` objects of PyTorch Geometric with a label `y` for each graph. Logs `train_loss`, `solver_steps`
    and `solver_residual` every step, and `val_loss`, `val_acc`, `test_loss`, `test_acc` over whole splits, with the
    solver's figures there under the same prefixes.

    Args:
        net: the model; maps a batch to logits (graphs, classes).
        options: those of `GraphTask`, from `optimizer` on.

    Raises:
        ValueError: if `penalty` is wanted with `compile` or without an equilibrium.
        CombinationError: from `setup` and the steps, if task or network are not made for the data.
    """

    labels = "one class for each graph"
    network = "IGNNGraphClassifier"

    def __init__(self, net: Network, **options: Any) -> None:
        super().__init__(net, **options)
        self.measure(acc=MulticlassAccuracy(average="micro"))

    def fits(self, graph: Any) -> bool:
        """Return whether a graph has one label."""
        return graph.y.shape == (1,)

    def counted(self, logits: Tensor, batch: Any, split: str) -> tuple[Tensor, Tensor]:
        """Return all of them."""
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
        options: those of `GraphTask`, from `optimizer` on.

    Raises:
        ValueError: if `penalty` is wanted with `compile` or without an equilibrium.
        CombinationError: from `setup` and the steps, if task or network are not made for the data.
    """

    network = "IGNNNodeClassifier"

    def __init__(self, net: Network, multilabel: bool = False, **options: Any) -> None:
        super().__init__(net, **options)
        self.multilabel = multilabel
        self.labels = "0 or 1 for every label of each node" if multilabel else "one class for each node"
        if multilabel:
            self.measure(f1=BinaryF1Score())  # of all numbers together, whatever their shape: the micro average
        else:
            self.measure(acc=MulticlassAccuracy(average="micro"))

    def fits(self, graph: Any) -> bool:
        """Return whether every node of a graph has a label, or a row of them."""
        return graph.y.shape[:-1] == (graph.num_nodes,) if self.multilabel else graph.y.shape == (graph.num_nodes,)

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

    def columns(self, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the prediction, its probability and the label, or how many labels are predicted, true, and both."""
        if not self.multilabel:
            return super().columns(logits, y)
        predicted, true = logits > 0, y > 0
        counts = {"predicted": predicted, "labels": true, "right": predicted & true}
        return {name: values.sum(dim=1) for name, values in counts.items()}
