"""What the data modules on graphs share."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from deq_lightning.data.base import DataModule
from deq_lightning.data.errors import DataError, DatasetNotFoundError, brief
from deq_lightning.data.order import TrainLoader
from deq_lightning.samples import NODES, Samples


class GraphTrainLoader(TrainLoader, DataLoader):
    """A `TrainLoader` that puts the graphs of a batch side by side."""


class GraphDataModule(DataModule):
    """Base of the data modules on graphs, which are held in memory as `Data` objects of PyTorch Geometric.

    `setup` calls `describe`.

    Args:
        batch_size: training graphs per step and device, 1 or more.
        eval_batch_size: graphs per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that put graphs together; by default 0.
        seed: fixes the splits and the order of the training graphs, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_memory: ClassVar[bool] = True
    train_loader = GraphTrainLoader
    eval_loader = DataLoader
    _samples: Samples | None = None

    @property
    def samples(self) -> Samples | None:
        """What the graphs are; they are read, unless they have been."""
        if self._samples is None:
            self.prepare_data()
            self.setup()
        return self._samples

    def describe(self, kind: str, graph: Data, classes: int, perron: float = 1.0) -> None:
        """Say what the graphs are.

        Args:
            kind: one of those in `deq_lightning.samples`.
            graph: one of them.
            classes: classes or labels.
            perron: bound on the Perron-Frobenius eigenvalue of the adjacency of every graph.
        """
        self._samples = Samples(kind, features=graph.num_features, classes=classes, perron=perron)


class GraphFiles(GraphDataModule):
    """Base of the data modules that read their graphs from files; a subclass says which, and how they are fetched."""

    name: str  # of the collection
    root: str
    download: bool
    doubtful: ClassVar[str] = "the connection"  # where a download fails

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the files are."""

    @property
    @abstractmethod
    def files(self) -> list[str]:
        """Names of the files in it."""

    @abstractmethod
    def fetch(self) -> None:
        """Download them."""

    def prepare_data(self) -> None:
        """Download what is missing if allowed."""
        missing = [path for path in (self.folder / file for file in self.files) if not path.is_file()]
        if not missing:
            return
        if not self.download:
            raise DatasetNotFoundError(
                f"`{self.name}` was not found under `{self.root}/` (expected `{missing[0]}`). {self._others()}Set "
                "`download=True` to fetch it, or `root=PATH` to name the folder that holds it."
            )
        try:
            self.fetch()
        except Exception as error:  # whatever a download may raise
            raise DatasetNotFoundError(
                f"`{self.name}` could not be downloaded to `{self.root}/` ({brief(error)}). Check {self.doubtful} and "
                "try again, or set `root=PATH` to name the folder that holds it."
            ) from error

    def _others(self) -> str:
        """Name what is there instead."""
        return ""


def check_graphs(graphs: Sequence[Data], place: str) -> None:
    """Raise a DataError unless every graph has nodes, and edges between them alone."""
    for number, graph in enumerate(graphs):
        if not graph.num_nodes:
            raise DataError(f"graph {number + 1} under `{place}` has no nodes. Leave it out of the files.")
        edges = graph.edge_index
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < graph.num_nodes:
            raise DataError(f"graph {number + 1} under `{place}` has an edge to a node that it does not have.")


class OneGraph(GraphDataModule):
    """Base of the data modules of one graph, whose masks say which nodes train, validate and test.

    Args:
        seed: fixes the splits, 0 or more.
    """

    unit = "nodes"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(batch_size=1, seed=seed)

    def split_sizes(self) -> dict[str, int]:
        """Return how many nodes each split has."""
        graphs = cast(list[Data], self.train_set or [])  # the one of all three
        return {split: int(graph[f"{split}_mask"].sum()) for graph in graphs for split in ("train", "val", "test")}

    def _use(self, graph: Data) -> None:
        """Make the graph all three splits."""
        self.describe(NODES, graph, int(graph.y.max()) + 1)
        self.train_set = self.val_set = self.test_set = [graph]


def mask(rows: Sequence[int] | np.ndarray, nodes: int) -> Tensor:
    """Return (nodes,) whether each node is among `rows`."""
    return torch.zeros(nodes, dtype=torch.bool).index_fill(0, torch.as_tensor(rows, dtype=torch.long), True)
