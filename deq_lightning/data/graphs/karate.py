"""Zachary's karate club."""

from sklearn.model_selection import train_test_split
from torch_geometric import datasets, transforms

from deq_lightning.configured import within
from deq_lightning.data.base import Size, check_sizes, samples_in
from deq_lightning.data.graphs.base import OneGraph, mask


class KarateClub(OneGraph):
    """Zachary's karate club: 34 members in four communities, embedded in PyTorch Geometric, nothing to download.

    One member of each community trains, as in PyTorch Geometric. Features are one-hot, and edges have the weights
    D^(-1/2) (A + I) D^(-1/2).

    Args:
        val_size: members of the other 30 that validate: their number, 1 to 29, or share, in (0, 1); the rest test.
        seed: fixes which of them validate, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Zachary, "An information flow model for conflict and fission in small groups", J. Anthropol. Res. 33(4), 1977.
        Kipf and Welling, "Semi-supervised classification with graph convolutional networks", ICLR 2017.
    """

    def __init__(self, val_size: Size = 10, seed: int = 0) -> None:
        super().__init__(seed)
        check_sizes(val_size=val_size)
        within("[1, 29]", "It is a part of 30 members; the rest tests.", val_size=samples_in(val_size, 30))
        self.val_size = val_size

    def setup(self, stage: str | None = None) -> None:
        """Split the members, whatever the stage."""
        del stage
        graph = transforms.GCNNorm()(datasets.KarateClub()[0])
        others = (~graph.train_mask).nonzero()[:, 0].numpy()
        val, test = train_test_split(others, train_size=samples_in(self.val_size, 30), random_state=self.seed)
        graph.val_mask, graph.test_mask = mask(val, 34), mask(test, 34)
        self._use(graph)
