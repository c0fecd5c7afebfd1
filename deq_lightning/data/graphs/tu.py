"""Collections of graphs to classify."""

import math
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch_geometric import datasets, transforms
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.io import read_tu_data

from deq_lightning.configured import at_least, renamed, within
from deq_lightning.data.base import Size, check_sizes, samples_in
from deq_lightning.data.errors import DataError, DatasetNotFoundError, SplitError, brief
from deq_lightning.data.graphs.base import GraphFiles, check_graphs
from deq_lightning.samples import GRAPHS


class TUFiles(InMemoryDataset):
    """The graphs of a collection, read from its text files, with one-hot node labels as features.

    `TUDataset` keeps a pickle of them beside the files, and unpickles what it finds there.

    Args:
        folder: folder that holds the files.
        name: name of the collection, which the names of its files begin with.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        data, slices, sizes = read_tu_data(str(folder), name)
        nodes, graphs = torch.as_tensor(slices.get("x", [])), len(slices["y"]) - 1
        if len(data.y) != graphs or (data.x is not None and int(nodes[-1]) != len(data.x)):
            raise ValueError("the files are not of the same nodes and graphs")
        if data.x is not None:
            data.x = data.x[:, sizes["num_node_attributes"] :]
        # The reader leaves out the last graphs if they have no edges.
        ends = slices["edge_index"]
        slices["edge_index"] = torch.cat([ends, ends[-1:].expand(graphs + 1 - len(ends))])
        data.edge_attr = None
        slices.pop("edge_attr", None)
        self.data, self.slices = data, slices


@renamed(val_fraction="val_size")
class TUGraphs(GraphFiles):
    """A collection of TU Dortmund's graphs, split into stratified folds: one tests, a part of the others validates.

    Features are the one-hot node labels (a constant where there are none), and edges have the weights
    D^(-1/2) (A + I) D^(-1/2) of each graph with its loops added, in training as in testing. Edge labels and node
    attributes are not used.

    Args:
        root: folder that holds the folder `name` with the text files in `raw/`.
        name: name of the collection, such as PROTEINS, COX2 or MUTAG.
        download: whether to fetch what is missing under `root`.
        folds: number of folds, 2 or more.
        fold: which one tests, 0 to `folds` − 1.
        val_size: graphs of the other folds that validate, in the proportions of the classes: their number, 1 or more,
            or their share, in (0, 1). At least as many as there are classes are always taken, and left to train.
        validate_on_test: whether to train on all of the other folds and select the model on the test fold, as the
            published results were; not for results of your own.
        double_test_edges: whether every edge of the test graphs counts twice beside their loops, as in the published
            code, so that they are normalised differently from the training graphs; not for results of your own.
        batch_size: training graphs per step and device, 1 or more.
        eval_batch_size: graphs per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that collate graphs; by default 0.
        seed: fixes the folds, the validation part and the order of the training graphs, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `prepare_data` and `setup`, if files are missing or damaged.
        DataError: from `setup`, if a graph has no nodes, or numbers in place of a class.
        SplitError: from `setup`, if there are too few graphs of a class.

    References:
        Morris et al., "TUDataset: a collection of benchmark datasets for learning with graphs", 2020, arXiv:2007.08663.
    """

    doubtful = "the name, or the connection"

    def __init__(
        self,
        root: str = "data",
        name: str = "PROTEINS",
        download: bool = False,
        folds: int = 10,
        fold: int = 0,
        val_size: Size = 0.1,
        validate_on_test: bool = False,
        double_test_edges: bool = False,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        at_least(2, folds=folds)
        within(f"[0, {folds - 1}]", fold=fold)
        check_sizes(val_size=val_size)
        self.root = root
        self.name = name
        self.download = download
        self.folds: int = folds
        self.fold = fold
        self.val_size = val_size
        self.validate_on_test = validate_on_test
        self.double_test_edges = double_test_edges

    @property
    def folder(self) -> Path:
        """Folder that holds the files."""
        return Path(self.root) / self.name / "raw"

    @property
    def departures(self) -> list[str]:
        """Choices that compromise results on this data, in words."""
        options = {
            "the model is selected on the test graphs": self.validate_on_test,
            "edges of the test graphs count twice": self.double_test_edges,
        }
        return [departure for departure, chosen in options.items() if chosen]

    @property
    def files(self) -> list[str]:
        """Names of the files that every collection has."""
        return [f"{self.name}_{part}.txt" for part in ("A", "graph_indicator", "graph_labels")]

    def fetch(self) -> None:
        """Download the files."""
        datasets.TUDataset(self.root, self.name)

    def _others(self) -> str:
        names = sorted(path.parent.name for path in Path(self.root).glob("*/raw"))
        return f"There is {', '.join(names)}. " if names else ""

    def setup(self, stage: str | None = None) -> None:
        """Read and split the graphs, whatever the stage."""
        del stage  # all splits are small
        self.prepare_data()
        graphs = self._read()
        labels = torch.cat([graph.y for graph in graphs])
        self.describe(GRAPHS, graphs[0], int(labels.max()) + 1)
        parts = self._split(labels.numpy())
        train, val, test = ([graphs[i] for i in part] for part in parts)
        self.train_set, self.test_set = normalised(train), normalised(test, 2.0 if self.double_test_edges else 1.0)
        self.val_set = self.test_set if self.validate_on_test else normalised(val)

    def _read(self) -> list[Data]:
        try:
            files = TUFiles(self.folder, self.name)
        except Exception as error:  # whatever reading a damaged file may raise
            raise DatasetNotFoundError(
                f"`{self.name}` under `{self.folder}/` is damaged or cut short ({brief(error)}). Delete "
                f"`{self.folder}` and set `download=True` to fetch it again."
            ) from error
        graphs = [files[i] for i in range(len(files))]
        check_graphs(graphs, str(self.folder))
        if graphs[0].y.is_floating_point():
            raise DataError(
                f"the graphs of `{self.name}` must have classes, got numbers from "
                f"`{self.folder / self.name}_graph_attributes.txt`. Move that file away to use their labels."
            )
        constant = transforms.Constant()
        return [graph if graph.num_features else constant(graph) for graph in graphs]

    def _split(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the indices of the training, validation and test graphs."""
        fewest = int(np.bincount(labels).min())
        if fewest < self.folds:
            raise SplitError(
                f"`folds` must be at most {fewest}, the graphs of the rarest class of `{self.name}`, got {self.folds}."
            )
        outside = fewest - math.ceil(fewest / self.folds)
        if outside < 2 and not self.validate_on_test:
            raise SplitError(
                f"outside of a fold there must be 2 graphs of every class, to train and to validate; the rarest class "
                f"of `{self.name}` has {fewest} graphs, and with {self.folds} folds {outside} outside. Leave it out of "
                "the files, or set more `folds=N`."
            )
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=self.seed)
        rest, test = list(folds.split(labels, labels))[self.fold]
        if self.validate_on_test:
            return rest, test, test
        classes = len(np.unique(labels))
        size = min(max(classes, samples_in(self.val_size, len(rest), round)), len(rest) - classes)
        train, val = train_test_split(rest, test_size=size, stratify=labels[rest], random_state=self.seed)
        return train, val, test


def normalised(graphs: list[Data], weight: float = 1.0) -> list[Data]:
    """Give the edges the weights D^(-1/2) (weight · A + I) D^(-1/2)."""
    norm = transforms.GCNNorm()
    for graph in graphs:
        graph.edge_weight = torch.full((graph.num_edges,), weight)
    return [norm(graph) for graph in graphs]
