"""What classifies graphs and their nodes by implicit layers."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import several_sizes, sizes, within
from deq_lightning.models.graphs.adjacency import GraphBatch
from deq_lightning.models.graphs.layers import IGNN


class IGNNGraphClassifier(IGNN):
    """Implicit graph neural network that classifies graphs: layers, the sum over the nodes, and a small head.

    With 64 wide layers and `unused_parameters` COX2 (35 features) takes 37,634 parameters and PROTEINS (3) 33,538, as
    published; without these tensors 27,010 and 24,962.

    Args:
        in_features: features of a node: 35 in COX2, 3 in PROTEINS.
        num_classes: classes to predict.
        width: of every layer and of the head.
        depth: layers.
        dropout: in the head, in [0, 1).
        options: those of `IGNN`, from `kappa` on.

    Shapes:
        A batch of graphs to logits (graphs, num_classes).

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Gu et al., "Implicit graph neural networks", NeurIPS 2020, arXiv:2009.06211.
    """

    def __init__(
        self,
        in_features: int = 35,
        num_classes: int = 2,
        width: int = 64,
        depth: int = 3,
        dropout: float = 0.5,
        **options: Any,
    ) -> None:
        sizes(1, in_features=in_features, num_classes=num_classes, width=width, depth=depth)
        super().__init__([in_features, *[width] * depth], **options)
        self.num_classes = num_classes
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), checked_dropout(dropout), nn.Linear(width, num_classes)
        )

    def predict(self, graphs: GraphBatch) -> Tensor:
        """Return the logits of the graphs."""
        pooled = graphs.features.new_zeros(graphs.num_graphs, graphs.features.shape[1])
        return self.head(pooled.index_add(0, graphs.graph, graphs.features))


class IGNNNodeClassifier(IGNN):
    """Implicit graph neural network that classifies nodes: layers, states of unit length, dropout, a linear map.

    With `in_features` 100 and 2 classes it is the published model of the chains: 3,504 parameters with
    `unused_parameters`, 1,888 without.

    Args:
        in_features: features of a node.
        num_classes: classes to predict.
        widths: of the layers.
        dropout: before the linear map, in [0, 1).
        options: those of `IGNN`, from `kappa` on.

    Shapes:
        A graph, or a batch of them, to logits (nodes, num_classes).

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Gu et al., "Implicit graph neural networks", NeurIPS 2020, arXiv:2009.06211.
    """

    def __init__(
        self,
        in_features: int = 100,
        num_classes: int = 2,
        widths: Sequence[int] = (16,),
        dropout: float = 0.5,
        **options: Any,
    ) -> None:
        check_widths(in_features, widths, num_classes)
        super().__init__([in_features, *widths], **options)
        self.num_classes = num_classes
        self.dropout = checked_dropout(dropout)
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def predict(self, graphs: GraphBatch) -> Tensor:
        """Return the logits of the nodes."""
        return self.head(self.dropout(F.normalize(graphs.features, dim=1)))


class IGNNSkipNodeClassifier(IGNN):
    """Implicit graph neural network that classifies nodes, with a linear map beside every layer, and ELU between them.

    The last layer gives the logits. With the defaults it is the published model of PPI: 4,656,931 parameters with
    `unused_parameters`, 3,654,826 without.

    Args:
        in_features: features of a node.
        num_classes: classes to predict, the width of the last layer.
        widths: of the layers before it.
        options: those of `IGNN`, from `kappa` on.

    Shapes:
        A graph, or a batch of them, to logits (nodes, num_classes).

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Gu et al., "Implicit graph neural networks", NeurIPS 2020, arXiv:2009.06211.
    """

    def __init__(
        self,
        in_features: int = 50,
        num_classes: int = 121,
        widths: Sequence[int] = (1024, 512, 512, 256),
        **options: Any,
    ) -> None:
        check_widths(in_features, widths, num_classes)
        sizes = [in_features, *widths, num_classes]
        super().__init__(sizes, **options)
        self.num_classes = num_classes
        self.skips = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))

    def combine(self, index: int, states: Tensor, features: Tensor) -> Tensor:
        """Add the linear map of the features, and apply ELU before a further layer."""
        total = states + self.skips[index](features)
        return total if index == len(self.layers) - 1 else F.elu(total)

    def predict(self, graphs: GraphBatch) -> Tensor:
        """Return the logits of the nodes."""
        return graphs.features


def checked_dropout(p: float) -> nn.Dropout:
    """Return dropout with probability `p`, in [0, 1)."""
    within("[0, 1)", dropout=p)
    return nn.Dropout(p)


def check_widths(in_features: int, widths: Sequence[int], num_classes: int) -> None:
    """Raise a ValueError unless there are layers, and all are 1 or more wide."""
    sizes(1, in_features=in_features, num_classes=num_classes)
    if not widths:
        raise ValueError("`widths` must have one entry or more, got []. Each is a layer.")
    several_sizes(1, widths=widths)
