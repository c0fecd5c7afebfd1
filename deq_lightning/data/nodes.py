"""Graphs whose nodes are classified."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch_geometric import datasets, transforms
from torch_geometric.data import Data, download_url, extract_zip
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from deq_lightning.configured import check_at_least
from deq_lightning.data.base import DataError, DatasetNotFoundError, SplitError, brief
from deq_lightning.data.graphs import GraphDataModule, GraphFiles, check_graphs

Normalization = Literal["perron", "gcn", "none"]


class OneGraph(GraphDataModule):
    """Base of the data modules of one graph, whose masks say which nodes train, validate and test.

    Args:
        seed: fixes the splits, 0 or more.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(batch_size=1, seed=seed)

    def _use(self, graph: Data) -> None:
        """Make the graph all three splits."""
        self.num_features, self.num_classes = graph.num_features, int(graph.y.max()) + 1
        self.train_set = self.val_set = self.test_set = [graph]


def mask(rows: Sequence[int] | np.ndarray, nodes: int) -> Tensor:
    """Return (nodes,) whether each node is among `rows`."""
    return torch.zeros(nodes, dtype=torch.bool).index_fill(0, torch.as_tensor(rows, dtype=torch.long), True)


class Chains(OneGraph):
    """Directed chains of nodes whose class only the first node of each shows: how far does a model see?

    The generator of the IGNN paper: coordinate c of the first node of a chain of class c is 1, all else is noise, and
    features are row-normalised by PyTorch Geometric's `NormalizeFeatures`. Edges go from each node to the next and have
    the weights D^(-1/2) (A + I) D^(-1/2), with D of the row sums: an adjacency that is not symmetric.

    Args:
        length: nodes of a chain, 1 or more.
        classes: 2 or more, at most `features`.
        chains_per_class: 1 or more.
        features: of a node.
        noise: features get a number from U(−noise, noise) each, 0 or more.
        train_size: nodes that train, drawn from all, 1 or more; likewise `val_size` and `test_size`.
        val_size: nodes that validate.
        test_size: nodes that test.
        seed: fixes the noise and the splits, 0 or more. The published one is 42.

    Raises:
        ValueError: if an argument is out of its range.
        SplitError: from `setup`, if there are not as many nodes.

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
        train_size: int = 20,
        val_size: int = 100,
        test_size: int = 200,
        seed: int = 42,
    ) -> None:
        super().__init__(seed)
        check_at_least(1, length=length, chains_per_class=chains_per_class)
        check_at_least(1, train_size=train_size, val_size=val_size, test_size=test_size)
        check_at_least(2, classes=classes)
        check_at_least(classes, features=features)
        check_at_least(0, noise=noise)
        self.shape = (classes, chains_per_class, length, features)
        self.noise = noise
        self.sizes = (train_size, val_size, test_size)

    def setup(self, stage: str | None = None) -> None:
        """Draw the chains, whatever the stage."""
        del stage
        classes, chains, length, features = self.shape
        nodes = classes * chains * length
        if sum(self.sizes) > nodes:
            sizes = " + ".join(str(size) for size in self.sizes)
            raise SplitError(
                f"`train_size` + `val_size` + `test_size` must be at most {nodes}, the number of nodes, got {sizes}."
            )
        draws = np.random.RandomState(self.seed)
        x = draws.uniform(-self.noise, self.noise, size=self.shape)
        for label in range(classes):
            x[label, :, 0, label] += 1
        order = draws.permutation(nodes)
        train, val, test, _ = np.split(order, np.cumsum(self.sizes))
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


class KarateClub(OneGraph):
    """Zachary's karate club: 34 members in four communities, embedded in PyTorch Geometric, nothing to download.

    One member of each community trains, as PyTorch Geometric has it. Features are one-hot, and edges have the weights
    D^(-1/2) (A + I) D^(-1/2).

    Args:
        val_size: of the other 30 members, how many validate; the rest tests. 1 to 29.
        seed: fixes which, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Zachary, "An information flow model for conflict and fission in small groups", J. Anthropol. Res. 33(4), 1977.
        Kipf and Welling, "Semi-supervised classification with graph convolutional networks", ICLR 2017.
    """

    def __init__(self, val_size: int = 10, seed: int = 0) -> None:
        super().__init__(seed)
        if not 1 <= val_size <= 29:
            raise ValueError(f"`val_size` must be 1 to 29, got {val_size}.")
        self.val_size = val_size

    def setup(self, stage: str | None = None) -> None:
        """Split the members, whatever the stage."""
        del stage
        graph = transforms.GCNNorm()(datasets.KarateClub()[0])
        others = (~graph.train_mask).nonzero()[:, 0].numpy()
        val, test = train_test_split(others, train_size=self.val_size, random_state=self.seed)
        graph.val_mask, graph.test_mask = mask(val, 34), mask(test, 34)
        self._use(graph)


def perron_bound(edge_index: Tensor, nodes: int, steps: int = 100) -> float:
    """Return a number that the Perron-Frobenius eigenvalue of the adjacency does not exceed, and is near to.

    By Collatz and Wielandt: max (A x)ᵢ / xᵢ is such a bound for every positive x, and falls to the eigenvalue as x
    follows the power iteration.
    """
    source, target = edge_index
    x, bound = torch.ones(nodes, dtype=torch.float64), float("inf")
    for _ in range(steps):
        image = x.index_add(0, target, x[source])  # of I + A, which does not alternate
        bound = min(bound, (image / x).max().item() - 1)
        x = (image / image.max()).clamp_min(1e-30)
    return bound


def read_ppi(folder: Path, split: str) -> list[Data]:
    """Return the graphs of a split, which the four files hold as one graph of numbered nodes, in their order.

    PyTorch Geometric's `PPI` numbers a graph's nodes from the first that has an edge, and unpickles what it finds in
    the folder.
    """
    content = json.loads((folder / f"{split}_graph.json").read_text())
    ends = torch.tensor([(link["source"], link["target"]) for link in content["links"]], dtype=torch.long)
    parts = ("feats", "labels", "graph_id")
    x, y, number = (torch.as_tensor(np.load(folder / f"{split}_{part}.npy")) for part in parts)
    whole = Data(x=x.float(), y=y.float(), edge_index=ends.view(-1, 2).t())
    if not content["directed"]:
        whole.edge_index = torch.cat([whole.edge_index, whole.edge_index.flip(0)], dim=1)
    whole = transforms.RemoveSelfLoops()(whole.coalesce())
    return [whole.subgraph(number == one) for one in range(int(number.min()), int(number.max()) + 1)]


class PPI(GraphFiles):
    """24 graphs of proteins and their interactions in human tissues; every node has any of 121 labels.

    20 graphs train, 2 validate, 2 test; 50 features. The published model sees A as it is and keeps W small by the
    Perron-Frobenius eigenvalue ρ of each graph. By default every graph comes with A / ρ, so that a graph never seen
    before cannot make a model ill-posed; what Ω₁ is given shrinks with it.

    Args:
        root: folder that holds `raw/`, with the files as PyTorch Geometric names them.
        download: whether to fetch what is missing.
        normalization: of the edges' weights: `perron` for A / ρ, `gcn` for D^(-1/2) (A + I) D^(-1/2), `none` for A.
            For the last a network needs `perron`, the largest ρ of all graphs; the error without it says that number.
        batch_size: training graphs per step and device, 1 or more.
        eval_batch_size: graphs per validation, test or prediction step.
        num_workers: processes that put graphs together; by default 0.
        seed: fixes the order of the training graphs, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `prepare_data` and `setup`, if files are missing or damaged.
        DataError: from `setup`, if labels are not 0 or 1.

    References:
        Hamilton, Ying and Leskovec, "Inductive representation learning on large graphs", NeurIPS 2017.
        Zitnik and Leskovec, "Predicting multicellular function through multi-layer tissue networks", 2017.
    """

    name = "PPI"

    def __init__(
        self,
        root: str = "data/PPI",
        download: bool = False,
        normalization: Normalization = "perron",
        batch_size: int = 1,
        eval_batch_size: int | None = 2,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if normalization not in get_args(Normalization):
            known = ", ".join(get_args(Normalization))
            raise ValueError(f"`normalization` must be one of {known}; got {normalization!r}.")
        self.root = root
        self.download = download
        self.normalization = normalization

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return Path(self.root) / "raw"

    @property
    def files(self) -> list[str]:
        """Names of those of all splits."""
        parts = ("feats.npy", "graph_id.npy", "graph.json", "labels.npy")
        return [f"{split}_{part}" for split in ("train", "valid", "test") for part in parts]

    def fetch(self) -> None:
        """Download them."""
        extract_zip(download_url(datasets.PPI.url, self.root), str(self.folder))

    def setup(self, stage: str | None = None) -> None:
        """Read the graphs once, whatever the stage: what is damaged is found before training and not after it."""
        del stage
        if self.test_set is not None:
            return
        self.prepare_data()
        self.train_set, self.val_set, self.test_set = (self._read(split) for split in ("train", "valid", "test"))
        if self.normalization == "none":
            graphs = [*self.train_set, *self.val_set, *self.test_set]
            self.perron = max(perron_bound(graph.edge_index, graph.num_nodes) for graph in graphs)

    def _read(self, split: str) -> list[Data]:
        try:
            graphs = read_ppi(self.folder, split)
        except Exception as error:  # whatever reading a damaged file may raise
            raise DatasetNotFoundError(
                f"the files of `{split}` under `{self.folder}/` are damaged, cut short or not of the same nodes "
                f"({brief(error)}). Delete `{self.folder}` and type `--data.download true` to fetch it again."
            ) from error
        check_graphs(graphs, str(self.folder))
        labels = torch.cat([graph.y for graph in graphs])
        if not ((labels == 0) | (labels == 1)).all():
            raise DataError(f"the labels under `{self.folder}` must be 0 or 1, got {labels.min()} to {labels.max()}.")
        self.num_features, self.num_classes = graphs[0].num_features, labels.shape[1]
        return [self._normalised(graph) for graph in graphs]

    def _normalised(self, graph: Data) -> Data:
        if self.normalization == "gcn":
            return transforms.GCNNorm()(graph)
        bound = perron_bound(graph.edge_index, graph.num_nodes) if self.normalization == "perron" else 1.0
        graph.edge_weight = torch.full((graph.num_edges,), 1 / bound if bound > 0 else 1.0)
        return graph
