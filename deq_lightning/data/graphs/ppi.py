"""Interactions of proteins."""

import json
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch_geometric import datasets, transforms
from torch_geometric.data import Data

from deq_lightning.configured import one_of
from deq_lightning.data.errors import DataError, DatasetNotFoundError, brief
from deq_lightning.data.graphs.base import GraphFiles, check_graphs
from deq_lightning.perron import perron_bound
from deq_lightning.samples import NODE_LABELS

Normalization = Literal["perron", "gcn", "none"]


def read_ppi(folder: Path, split: str) -> list[Data]:
    """Return the graphs of a split in their order; its four files hold them as one graph of numbered nodes.

    PyTorch Geometric's `PPI` numbers a graph's nodes from the first that has an edge, and unpickles what it finds in
    the folder.
    """
    content = json.loads((folder / f"{split}_graph.json").read_text())
    ends = torch.tensor([(link["source"], link["target"]) for link in content["links"]], dtype=torch.long)
    parts = ("feats", "labels", "graph_id")
    arrays = (np.load(folder / f"{split}_{part}.npy", allow_pickle=False) for part in parts)
    x, y, number = map(torch.as_tensor, arrays)
    whole = Data(x=x.float(), y=y.float(), edge_index=ends.view(-1, 2).t())
    if not content["directed"]:
        whole.edge_index = torch.cat([whole.edge_index, whole.edge_index.flip(0)], dim=1)
    whole = transforms.RemoveSelfLoops()(whole.coalesce())
    first, last = int(number.min()), int(number.max())
    if last - first >= len(number):
        raise DataError(
            f"the graphs in `{folder / split}_graph_id.npy` must have consecutive numbers, got {first} to {last} for "
            f"{len(number)} nodes. Number them anew."
        )
    return [whole.subgraph(number == one) for one in range(first, last + 1)]


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

    @property
    def url(self) -> str:
        """Address of the archive that holds the files."""
        return datasets.PPI.url

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
        except DataError:
            raise
        except Exception as error:  # whatever reading a damaged file may raise
            raise DatasetNotFoundError(
                f"the files of `{split}` under `{self.folder}/` are damaged, cut short or not of the same nodes "
                f"({brief(error)}). Delete `{self.folder}` and set `download=True` to fetch it again."
            ) from error
        check_graphs(graphs, str(self.folder), str(self.folder / f"{split}_feats.npy"))
        labels, file = torch.cat([graph.y for graph in graphs]), self.folder / f"{split}_labels.npy"
        if not ((labels == 0) | (labels == 1)).all():
            raise DataError(f"the labels in `{file}` must be 0 or 1, got {labels.min()} to {labels.max()}.")
        if (labels == labels[0, 0]).all():
            raise DataError(f"the labels in `{file}` must be 0 and 1, got {labels[0, 0]} for all: nothing to learn.")
        return [self._normalised(graph) for graph in graphs]

    def _normalised(self, graph: Data) -> Data:
        if self.normalization == "gcn":
            return transforms.GCNNorm()(graph)
        bound = perron_bound(graph.edge_index, graph.num_nodes) if self.normalization == "perron" else 1.0
        graph.edge_weight = torch.full((graph.num_edges,), 1 / bound if bound > 0 else 1.0)
        return graph
