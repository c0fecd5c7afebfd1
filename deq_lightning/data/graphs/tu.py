"""Collections of graphs to classify."""

import math
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import Tensor
from torch_geometric import datasets, transforms
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, one_hot, remove_self_loops

from deq_lightning.configured import renamed, whole, within
from deq_lightning.data.base import Size, check_sizes, samples_in
from deq_lightning.data.errors import DataError, DatasetNotFoundError, SplitError, brief
from deq_lightning.data.graphs.base import GraphFiles, check_graphs
from deq_lightning.samples import GRAPHS

PARTS = ("A", "graph_indicator", "graph_labels")  # of the files that every collection has


def read_table(file: Path) -> np.ndarray:
    """Return (lines, numbers) the whole numbers of a text file, with commas between those of a line."""
    lines = file.read_text().splitlines()
    rows = [[int(number) for number in line.split(",")] for line in lines if line.strip()]
    return np.array(rows or np.empty((0, 1)), dtype=np.int64)


def read_tu(folder: Path, name: str) -> list[Data]:
    """Return the graphs of a collection, with one-hot node labels as features.

    PyTorch Geometric's `TUDataset` keeps a pickle beside the files, and unpickles what it finds there; its reader fails
    on a collection without edges, and allocates as many features as the largest label says.

    Args:
        folder: folder that holds the files.
        name: name of the collection, which the names of its files begin with.
    """
    edges, (place,), (y,) = (read_table(folder / f"{name}_{part}.txt").T for part in PARTS)
    ends, place = torch.as_tensor(edges).view(2, -1) - 1, place - 1
    graphs = len(y)
    if not graphs or (np.diff(place) < 0).any() or place.min() < 0 or place.max() >= graphs:
        raise ValueError("the files are not of the same nodes and graphs")
    if ends.numel() and not 0 <= int(ends.min()) <= int(ends.max()) < len(place):
        raise ValueError("there is an edge of a node that is in no graph")
    labels = folder / f"{name}_node_labels.txt"
    x = one_hot_labels(labels, len(place)) if labels.is_file() else torch.ones(len(place), 1)
    _, classes = np.unique(y, return_inverse=True)
    counts = np.bincount(place, minlength=graphs)
    starts = torch.as_tensor(np.cumsum([0, *counts]))
    ends = coalesce(remove_self_loops(ends)[0], num_nodes=len(place))
    graph_of_edge = torch.as_tensor(place)[ends[0]]
    ends = (ends - starts[graph_of_edge]).split(torch.bincount(graph_of_edge, minlength=graphs).tolist(), dim=1)
    labelled = zip(x.split(counts.tolist()), ends, torch.as_tensor(classes.reshape(-1, 1)), strict=True)
    return [Data(x=features, edge_index=edge_index, y=label) for features, edge_index, label in labelled]


def one_hot_labels(file: Path, nodes: int) -> Tensor:
    """Return (nodes, features) the labels of the nodes, each of a line's numbers one-hot, from the smallest on.

    Raises:
        DataError: if there are more features than nodes, as with numbers that are not labels.
    """
    labels = read_table(file)
    if len(labels) != nodes:
        raise ValueError("the files are not of the same nodes and graphs")
    for column in labels.T:
        different = len(np.unique(column))
        if int(column.max()) - int(column.min()) >= nodes:
            raise DataError(
                f"the labels in `{file}` must be consecutive classes, such as 0 to {different - 1}, got "
                f"{column.min()} to {column.max()} for {different} different ones. Number them anew."
            )
    return torch.cat([one_hot(torch.as_tensor(column - column.min())) for column in labels.T], dim=1)


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
        whole(2, folds=folds)
        whole(0, fold=fold)
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
        return [f"{self.name}_{part}.txt" for part in PARTS]

    @property
    def url(self) -> str:
        """Address of the archive that holds the files."""
        return f"{datasets.TUDataset.url}/{self.name}.zip"

    def wanted(self, file: str) -> bool:
        """Return whether a file of the archive is one of the collection's text files."""
        return file.startswith(f"{self.name}_") and file.endswith(".txt")

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
        numbers = self.folder / f"{self.name}_graph_attributes.txt"
        if numbers.is_file():
            raise DataError(
                f"the graphs of `{self.name}` must have classes, got numbers from `{numbers}`. Move that file away to "
                "use their labels."
            )
        try:
            graphs = read_tu(self.folder, self.name)
        except DataError:
            raise
        except Exception as error:  # whatever reading a damaged file may raise
            raise DatasetNotFoundError(
                f"`{self.name}` under `{self.folder}/` is damaged or cut short ({brief(error)}). Delete "
                f"`{self.folder}` and set `download=True` to fetch it again."
            ) from error
        check_graphs(graphs, str(self.folder))
        if len({int(graph.y) for graph in graphs}) < 2:
            raise DataError(
                f"the labels in `{self.folder / self.name}_graph_labels.txt` must be of two classes or more, got one "
                "for all graphs. Choose a collection to classify."
            )
        return graphs

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
