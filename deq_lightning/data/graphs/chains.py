"""Chains of nodes, which show how far a model sees."""

import numpy as np
import torch
from torch_geometric import transforms
from torch_geometric.data import Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from deq_lightning.configured import at_least, sizes, within
from deq_lightning.data.base import Size, check_sizes, samples_in
from deq_lightning.data.errors import SplitError
from deq_lightning.data.graphs.base import OneGraph, mask


class Chains(OneGraph):
    """Directed chains of nodes whose class only the first node of each shows: how far does a model see?

    The generator of the IGNN paper: coordinate c of the first node of a chain of class c is 1, all else is noise, and
    features are row-normalised by PyTorch Geometric's `NormalizeFeatures`. Edges go from each node to the next and have
    the weights D^(-1/2) (A + I) D^(-1/2), where D holds the row sums: an adjacency that is not symmetric.

    Args:
        length: nodes of a chain, 1 or more.
        classes: number of classes, 2 or more, at most `features`.
        chains_per_class: chains of each class, 1 or more.
        features: features of a node.
        noise: each feature gets a number from U(−noise, noise), 0 or more.
        train_size: nodes that train, drawn from all: their number, 1 or more, or their share, in (0, 1).
        val_size: nodes that validate, likewise.
        test_size: nodes that test, likewise.
        seed: fixes the noise and the splits, 0 or more. The published one is 42.

    Raises:
        ValueError: if an argument is out of its range.
        SplitError: from `setup`, if there are too few nodes.

    References:
        Gu et al., "Implicit graph neural networks", NeurIPS 2020, arXiv:2009.06211, Section 5.
    """

    def __init__(
        self,
        length: int = 10,
        classes: int = 2,
        chains_per_class: int = 20,
        features: int = 100,
        noise: float = 0.0,
        train_size: Size = 20,
        val_size: Size = 100,
        test_size: Size = 200,
        seed: int = 42,
    ) -> None:
        super().__init__(seed)
        sizes(1, length=length, chains_per_class=chains_per_class)
        check_sizes(train_size=train_size, val_size=val_size, test_size=test_size)
        sizes(2, classes=classes)
        sizes(classes, features=features)
        at_least(0, noise=noise)
        within("[0, 1e30]", noise=noise)
        self.shape = (classes, chains_per_class, length, features)
        self.noise = noise
        self.sizes = (train_size, val_size, test_size)

    def setup(self, stage: str | None = None) -> None:
        """Draw the chains, whatever the stage."""
        del stage
        classes, chains, length, features = self.shape
        nodes = classes * chains * length
        counts = [samples_in(size, nodes) for size in self.sizes]
        if sum(counts) > nodes:
            sizes = " + ".join(map(str, counts))
            raise SplitError(
                f"`train_size` + `val_size` + `test_size` must be at most {nodes}, the number of nodes, got {sizes}."
            )
        draws = np.random.RandomState(self.seed)
        x = draws.uniform(-self.noise, self.noise, size=self.shape)
        for label in range(classes):
            x[label, :, 0, label] += 1
        order = draws.permutation(nodes)
        train, val, test, _ = np.split(order, np.cumsum(counts))
        graph = Data(
            x=torch.as_tensor(x.reshape(nodes, features), dtype=torch.float32),
            y=torch.arange(classes).repeat_interleave(chains * length),
            train_mask=mask(train, nodes),
            val_mask=mask(val, nodes),
            test_mask=mask(test, nodes),
        )
        first = torch.arange(nodes)[torch.arange(nodes) % length < length - 1]
        # By row sums: PyTorch Geometric's own direction normalises by column sums, which differ where A is directed.
        graph.edge_index, graph.edge_weight = gcn_norm(
            torch.stack([first, first + 1]), num_nodes=nodes, flow="target_to_source", dtype=torch.float32
        )
        self._use(transforms.NormalizeFeatures()(graph))
