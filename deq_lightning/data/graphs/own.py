"""Graphs of your own."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch_geometric.data import Batch, Data

from deq_lightning.configured import is_whole, one_of
from deq_lightning.data.base import Size, check_sizes
from deq_lightning.data.errors import DataError, DatasetNotFoundError, SplitError
from deq_lightning.data.graphs.base import GraphDataModule, mask
from deq_lightning.data.graphs.labels import has_masks, kind_of, number_labels, split
from deq_lightning.data.graphs.saved import (
    MASKS,
    Saved,
    Widths,
    check_widths,
    files_in,
    read_folder,
    read_graphs,
    read_one,
)
from deq_lightning.data.graphs.weights import Normalization, normalise
from deq_lightning.data.inputs import NewInputs
from deq_lightning.samples import GRAPHS, NODE_LABELS, NODES

SPLITS = ("train", "val", "test")


class Graphs(GraphDataModule):
    """Your own graphs: a folder of files `*.pt` with a graph each, in the order of their names, or a file with a list.

    A graph is a `Data` of PyTorch Geometric, or a dictionary of its tensors, saved by `torch.save`; nothing else in a
    file is unpickled. It has `x` (nodes, features); `edge_index` (2, edges) of sources and targets, an undirected edge
    both ways; if wanted `edge_weight` (edges,), otherwise 1, and `edge_attr`, which only networks of your own see; and
    labels `y`: one class, to classify graphs; (nodes,) a class each, or (nodes, labels) of 0 and 1, to classify nodes.

    Folders `train`, `val` and `test` name the splits, and those that are missing are taken from `train`; without such
    folders all are drawn by seed. Nodes may have `train_mask`, `val_mask` and `test_mask` instead, which are drawn
    where there is one graph alone.

    Args:
        root: the folder or the file.
        normalization: of the edge weights of each graph: `gcn` for D^(-1/2) (A + I) D^(-1/2), `perron` for A / ρ, with
            its Perron-Frobenius eigenvalue ρ, `none` for A; then a network needs `perron`, the largest ρ of all.
        val_size: graphs, or nodes of one graph, that validate: their number, or their share of all, in (0, 1); with
            folders, of those in `train`.
        test_size: those that test, likewise. Where each has one class, every split has the classes in the same
            proportions.
        batch_size: training graphs per step and device, 1 or more.
        eval_batch_size: graphs per validation, test or prediction step; by default `batch_size`.
        num_workers: processes that collate graphs; by default 0.
        seed: fixes the splits and the order of the training graphs, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `samples`, `prepare_data` and `setup`, if a file cannot be read.
        DataError: likewise, if something in it is no such graph.
        SplitError: likewise, if the sizes do not fit.
    """

    def __init__(
        self,
        root: str,
        normalization: Normalization = "gcn",
        val_size: Size = 0.15,
        test_size: Size = 0.2,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        one_of(get_args(Normalization), normalization=normalization)
        check_sizes(val_size=val_size, test_size=test_size)
        self.root = root
        self.normalization = normalization
        self.sizes = {"val": val_size, "test": test_size}
        self.unit = "graphs"
        self._widths: Widths | None = None  # that all graphs have
        self._test_names: list[str] | None = None

    @property
    def file_names(self) -> Sequence[str] | None:
        """Path of each test graph, where it is what is classified."""
        return self._test_names

    def setup(self, stage: str | None = None) -> None:
        """Read and split all graphs once, whatever the stage."""
        del stage
        if self.test_set is not None:
            return
        parts = self._read()
        graphs = [graph for part in parts.values() for graph in part]
        self._widths = Widths.of(graphs[0].graph)
        for saved in graphs:
            check_widths(saved, self._widths)
        kind = kind_of(graphs)
        classes = number_labels(graphs, kind)
        masked = kind in (NODES, NODE_LABELS) and has_masks(graphs)
        bounds = [normalise(saved, self.normalization) for saved in graphs]
        self.describe(kind, graphs[0].graph, classes, max(bounds) or 1.0)
        if masked or (kind != GRAPHS and len(graphs) == 1):
            self._use_masks(parts, graphs, masked)
        else:
            self._use_graphs(parts, kind, classes)

    def split_sizes(self) -> dict[str, int]:
        """Return how many graphs, or nodes with a mask, each split has."""
        if self.unit == "graphs":
            return super().split_sizes()
        graphs = cast(list[Data], self.train_set)  # those of all three
        return {split: sum(int(graph[f"{split}_mask"].sum()) for graph in graphs) for split in SPLITS}

    def state_dict(self) -> dict[str, Any]:
        """Return what new graphs must be like, for checkpoints."""
        return self._like()._asdict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what new graphs must be like from a checkpoint.

        Raises:
            DataError: if it does not say.
        """
        values = [state_dict.get(name) for name in Widths._fields]
        if not all(map(is_whole, values)):
            raise DataError("the checkpoint must say how many features nodes and edges have. Use another.")
        self._widths = Widths(*cast(list[int], values))

    def inputs(self, path: str) -> NewInputs:
        """Return the graphs in a folder, or of one file, for `predict`; they need no labels, and those are not read."""
        place = Path(path).expanduser()
        like, files = self._like(), files_in(place) if place.is_dir() else [place] if place.is_file() else []
        if not files:
            raise DatasetNotFoundError(f"there are no graphs in `{path}`. Name a folder of files *.pt, or one of them.")
        graphs = read_graphs(place, place.name) if place.is_file() else None
        names = [file.name for file in files] if graphs is None else [one.name for one in graphs]

        def read(number: int) -> Data:
            return self._new(graphs[number] if graphs else read_one(files[number]), like)

        return NewInputs(self, path, names, read, together=batched)

    def _new(self, saved: Saved, like: Widths) -> Data:
        """Return a new graph as evaluation sees it."""
        check_widths(saved, like)
        graph = copy(saved.graph)  # it may be read again
        normalise(Saved(saved.name, graph), self.normalization)
        for key in ("y", *MASKS):
            if key in graph:
                del graph[key]
        return graph

    def _like(self) -> Widths:
        if self._widths is None:
            self.setup()
        assert self._widths is not None
        return self._widths

    def _read(self) -> dict[str, list[Saved]]:
        """Return the graphs of each split that there is; without splits all are in "train"."""
        root = Path(self.root).expanduser()
        if root.is_file():
            return {"train": read_graphs(root)}
        if not root.is_dir():
            raise DatasetNotFoundError(f"there is no `{root}`. Set `root=PATH` to a folder of graphs, or to a file.")
        named = [name for name in SPLITS if (root / name).is_dir()]
        if not named:
            return {"train": read_folder(root)}
        if "train" not in named or files_in(root):
            raise DatasetNotFoundError(
                f"`{root}` must have a folder `train` beside `{named[0]}`, and no graphs outside of them. Move them."
            )
        return {name: read_folder(root / name) for name in named}

    def _use_masks(self, parts: dict[str, list[Saved]], graphs: list[Saved], masked: bool) -> None:
        """Make all graphs all three splits, of which masks say the nodes."""
        if len(parts) > 1:
            raise DataError(f"`{self.root}` must have folders of splits or masks of nodes, got both. Leave one out.")
        if not masked:
            (_, graph), nodes = graphs[0], graphs[0].graph.num_nodes
            labels = graph.y if graph.y.dim() == 1 else None
            for name, numbers in split(nodes, self.sizes, self.seed, labels, "nodes").items():
                graph[f"{name}_mask"] = mask(numbers, nodes)
        self.unit = "nodes"
        self.train_set = self.val_set = self.test_set = [graph for _, graph in graphs]

    def _use_graphs(self, parts: dict[str, list[Saved]], kind: str, classes: int) -> None:
        """Take the splits that there are no folders of from the training graphs."""
        train, sizes = parts["train"], {name: size for name, size in self.sizes.items() if name not in parts}
        labels = torch.cat([graph.y for _, graph in train]) if kind == GRAPHS else None
        if labels is not None and len(lacking := set(range(classes)) - set(labels.tolist())):
            raise SplitError(f"the training graphs must have every class, got none of class {min(lacking)}. Add some.")
        drawn = split(len(train), sizes, self.seed, labels, "graphs")
        sets = parts | {name: [train[number] for number in numbers] for name, numbers in drawn.items()}
        self.train_set, self.val_set, self.test_set = ([graph for _, graph in sets[name]] for name in SPLITS)
        self._test_names = [name for name, _ in sets["test"]] if kind == GRAPHS else None


def batched(graphs: list[Any]) -> Batch:
    """Return graphs side by side as one."""
    return Batch.from_data_list(graphs)
