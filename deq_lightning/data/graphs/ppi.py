"""Interactions of proteins."""

import json
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch_geometric import datasets, transforms
from torch_geometric.data import Data, download_url, extract_zip

from deq_lightning.configured import one_of
from deq_lightning.data.errors import DataError, DatasetNotFoundError, brief
from deq_lightning.data.graphs.base import GraphFiles, check_graphs
from deq_lightning.samples import NODE_LABELS

Normalization = Literal["perron", "gcn", "none"]


def perron_bound(edge_index: Tensor, nodes: int, steps: int = 100) -> float:
    """Return a close upper bound on the Perron-Frobenius eigenvalue of the adjacency.

    By Collatz and Wielandt: max (A x)ᵢ / xᵢ is such a bound for every positive x, and falls to the eigenvalue as x
    follows the power iteration.
    """
    source, target = edge_index
    x, bound = torch.ones(nodes, dtype=torch.float64), float("inf")
    for _ in range(steps):
        image = x.index_add(0, target, x[source])  # (I + A) x: iterating I + A does not alternate
        bound = min(bound, (image / x).max().item() - 1)
        x = (image / image.max()).clamp_min(1e-30)
    return bound


def read_ppi(folder: Path, split: str) -> list[Data]:
    """Return the graphs of a split in their order; its four files hold them as one graph of numbered nodes.

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
    before cannot make a model ill-posed; the input of Ω₁ shrinks with it.

    Args:
        root: folder that holds `raw/`, with the files as PyTorch Geometric names them.
        download: whether to fetch what is missing.
        normalization: of the edge weights: `perron` for A / ρ, `gcn` for D^(-1/2) (A + I) D^(-1/2), `none` for A.
            For the last a network needs `perron`, the largest ρ of all graphs.
        batch_size: training graphs per step and device, 1 or more.
        eval_batch_size: graphs per validation, test or prediction step.
        num_workers: processes that collate graphs; by default 0.
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
        one_of(get_args(Normalization), normalization=normalization)
        self.root = root
        self.download = download
        self.normalization = normalization

    @property
    def folder(self) -> Path:
        """Folder that holds the files."""
        return Path(self.root) / "raw"

    @property
    def files(self) -> list[str]:
        """Names of the files of all splits."""
        parts = ("feats.npy", "graph_id.npy", "graph.json", "labels.npy")
        return [f"{split}_{part}" for split in ("train", "valid", "test") for part in parts]

    def fetch(self) -> None:
        """Download and unpack the files."""
        extract_zip(download_url(datasets.PPI.url, self.root), str(self.folder))

    def setup(self, stage: str | None = None) -> None:
        """Read all graphs once, whatever the stage, so that damage is found before training, not after it."""
        del stage
        if self.test_set is not None:
            return
        self.prepare_data()
        self.train_set, self.val_set, self.test_set = (self._read(split) for split in ("train", "valid", "test"))
        graphs = [*self.train_set, *self.val_set, *self.test_set]
        whole = self.normalization == "none"
        bounds = [perron_bound(graph.edge_index, graph.num_nodes) for graph in graphs if whole]
        self.describe(NODE_LABELS, graphs[0], graphs[0].y.shape[1], max(bounds, default=1.0))

    def _read(self, split: str) -> list[Data]:
        try:
            graphs = read_ppi(self.folder, split)
        except Exception as error:  # whatever reading a damaged file may raise
            raise DatasetNotFoundError(
                f"the files of `{split}` under `{self.folder}/` are damaged, cut short or not of the same nodes "
                f"({brief(error)}). Delete `{self.folder}` and set `download=True` to fetch it again."
            ) from error
        check_graphs(graphs, str(self.folder))
        labels = torch.cat([graph.y for graph in graphs])
        if not ((labels == 0) | (labels == 1)).all():
            raise DataError(f"the labels under `{self.folder}` must be 0 or 1, got {labels.min()} to {labels.max()}.")
        return [self._normalised(graph) for graph in graphs]

    def _normalised(self, graph: Data) -> Data:
        if self.normalization == "gcn":
            return transforms.GCNNorm()(graph)
        bound = perron_bound(graph.edge_index, graph.num_nodes) if self.normalization == "perron" else 1.0
        graph.edge_weight = torch.full((graph.num_edges,), 1 / bound if bound > 0 else 1.0)
        return graph
