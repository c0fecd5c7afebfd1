"""The base classes of graph data modules."""

import os
import tempfile
import zipfile
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data, download_url
from torch_geometric.loader import DataLoader

from deq_lightning.data.base import DataModule
from deq_lightning.data.errors import DataError, DatasetNotFoundError, brief
from deq_lightning.data.order import TrainLoader
from deq_lightning.samples import GRAPHS, NODES, Samples


class GraphTrainLoader(TrainLoader, DataLoader):
    """A `TrainLoader` that puts the graphs of a batch side by side."""


class GraphDataModule(DataModule):
    """Base class of graph data modules, which hold graphs in memory as `Data` objects of PyTorch Geometric.

    To derive one, implement `setup`, which fills `train_set`, `val_set` and `test_set`, and calls `describe`.

    Args:
        batch_size: training graphs per step and device, 1 or more.
        eval_batch_size: graphs per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that collate graphs; by default 0.
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
        """Description of the graphs, which are read if they have not been."""
        if self._samples is None:
            self.prepare_data()
            self.setup()
        return self._samples

    def describe(self, kind: str, graph: Data, classes: int, perron: float = 1.0) -> None:
        """Set the description that `samples` returns.

        Args:
            kind: one of the kinds in `deq_lightning.samples`.
            graph: one of the graphs, for the number of features.
            classes: number of classes or labels.
            perron: bound on the Perron-Frobenius eigenvalue of the adjacency of every graph.
        """
        self._samples = Samples(kind, features=graph.num_features, classes=classes, perron=perron)

    def _filled(self, split: str) -> Dataset[Any]:
        graphs: Any = super()._filled(split)
        place = f"`{type(self).__name__}.{split}`"
        check_features(graphs, place)
        if self._samples and self._samples.kind in (GRAPHS, NODES):
            check_classes(graphs, self._samples.classes or 0, place)
        return graphs


class GraphFiles(GraphDataModule):
    """Base class of data modules that read graphs from files; implement `folder`, `files`, `url` and `setup`.

    Only text and arrays are read, and only such files are unpacked from an archive: what PyTorch Geometric would keep
    beside them are pickles, which run what anybody has put into them.
    """

    name: str  # of the collection
    root: str
    download: bool
    doubtful: ClassVar[str] = "the connection"  # what to check where a download fails

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Folder that holds the files."""

    @property
    @abstractmethod
    def files(self) -> list[str]:
        """Names of the files in the folder."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Address of the archive that holds the files."""

    def wanted(self, file: str) -> bool:
        """Return whether a file of the archive is one to unpack."""
        return file in self.files

    def fetch(self) -> None:
        """Download the archive and unpack the files."""
        Path(self.root).mkdir(parents=True, exist_ok=True)
        # In a new folder: `download_url` takes what is there for the whole archive, also what an interrupted run left.
        with tempfile.TemporaryDirectory(dir=self.root) as place:
            with zipfile.ZipFile(download_url(self.url, place)) as archive:
                paths = {PurePosixPath(path).name: path for path in archive.namelist()}
                unpacked = [file for file in paths if self.wanted(file)]
                if lacking := set(self.files) - set(unpacked):
                    raise FileNotFoundError(f"the archive has no {min(lacking)}")
                for file in unpacked:
                    Path(place, file).write_bytes(archive.read(paths[file]))
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(unpacked, key=self.files.__contains__):  # last those that say that all are there
                os.replace(Path(place, file), self.folder / file)

    def prepare_data(self) -> None:
        """Download missing files if `download` allows it."""
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
        """Name the collections that are there instead, for the error message."""
        return ""


def check_features(graphs: Any, place: str) -> None:
    """Raise a DataError unless the features of every graph are finite, as far as it has some."""
    for number in range(len(graphs)):
        x = graphs[number].x
        if x is not None and not x.isfinite().all():
            raise DataError(
                f"the features of a graph must be finite, got {x[~x.isfinite()][0]} in graph {number + 1} of {place}. "
                "Repair them, or leave that graph out."
            )


def check_classes(graphs: Any, classes: int, place: str) -> None:
    """Raise a DataError unless the labels of every graph are below `classes`."""
    for number in range(len(graphs)):
        y = graphs[number].y
        if y is not None and y.numel() and y.max() >= classes:
            raise DataError(
                f"labels must be consecutive classes, 0 to {classes - 1}, got {y.max()} in graph {number + 1} of "
                f"{place}. Number them anew, or call `describe` with the number of classes."
            )


def check_graphs(graphs: Sequence[Data], place: str, features: str | None = None) -> None:
    """Raise a DataError unless every graph has nodes, edges only between them, and finite features.

    Args:
        graphs: the graphs.
        place: folder that they come from.
        features: file that the features come from. None: `place`.
    """
    check_features(graphs, f"`{features or place}`")
    for number, graph in enumerate(graphs):
        if not graph.num_nodes:
            raise DataError(f"graph {number + 1} under `{place}` has no nodes. Leave it out of the files.")
        edges = graph.edge_index
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < graph.num_nodes:
            raise DataError(f"graph {number + 1} under `{place}` has an edge to a node that it does not have.")


class OneGraph(GraphDataModule):
    """Base class of data modules with one graph, whose masks say which nodes train, validate and test.

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
