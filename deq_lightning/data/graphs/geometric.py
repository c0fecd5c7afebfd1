"""The datasets of PyTorch Geometric, by name."""

import difflib
import inspect
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch_geometric.datasets
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch_geometric.data import Data, Dataset

from deq_lightning.configured import whole
from deq_lightning.data.errors import DataError, DatasetNotFoundError, brief
from deq_lightning.data.graphs.own import SPLITS, Graphs
from deq_lightning.data.graphs.saved import MASKS, Saved, made, refused_name
from deq_lightning.trust import plain_pickles


class GeometricDataset(Graphs):
    """Graphs or nodes to classify from a dataset of PyTorch Geometric, by the class in `torch_geometric.datasets`.

    The class reads, or downloads, its files as ever, while nothing is unpickled but arrays, tensors and graphs: files
    that name anything else are refused. Its graphs then are as those of `Graphs`. Published splits are used where the
    class has a part `train`, or three masks of nodes; others are drawn by seed.

    Args:
        name: of the class, such as `Planetoid`.
        options: its arguments without the folder, such as `{name: Cora}`.
        root: folder of its files, or for them.
        download: whether it may download missing files.
        fold: which of several published masks of nodes, from 0.
        graphs: other arguments of `Graphs`; sizes are of what no published split says.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetNotFoundError: from `samples`, `prepare_data` and `setup`, if the class cannot read or fetch its files.
        DataError: likewise, if they are no graphs with classes.
        SplitError: likewise, if the sizes do not fit.
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any] | None = None,
        root: str = "data/geometric",
        download: bool = False,
        fold: int = 0,
        **graphs: Any,
    ) -> None:
        super().__init__(root, **graphs)
        known = torch_geometric.datasets.__all__
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.4) or known[:3]
            raise ValueError(
                f"`name` must be a class of `torch_geometric.datasets`, got {name!r}. Near: {', '.join(near)}."
            )
        whole(0, fold=fold)
        self.name = name
        self.options = dict(options or {})
        self.download = download
        self.fold = fold

    def prepare_data(self) -> None:
        """Have the class download missing files if `download` allows it, and bring them into its own form."""
        for part in self._parts().values():
            self._dataset(part)

    def _read(self) -> dict[str, list[Saved]]:
        return {split: self._graphs(split, part) for split, part in self._parts().items()}

    def _parts(self) -> dict[str, dict[str, Any]]:
        """Return the published splits, each with the argument that asks for it."""
        arguments = inspect.signature(self._known.__init__).parameters
        for key, parts in PUBLISHED.items():
            if key in arguments and key not in self.options and arguments[key].default == parts["train"]:
                return {split: {key: value} for split, value in parts.items()}
        return {"train": {}}

    @property
    def _known(self) -> Any:
        assert self.name is not None  # base classes do without one
        return getattr(torch_geometric.datasets, self.name)

    def _dataset(self, part: Mapping[str, Any]) -> Any:
        """Return the graphs as the class reads them."""
        known: Any = self._known
        if not self.download and getattr(known, "download", Dataset.download) is not Dataset.download:
            known = type(known.__name__, (known,), {"download": _refused, "__module__": known.__module__})
        place = {"root": self.root} if "root" in inspect.signature(known.__init__).parameters else {}
        try:
            with plain_pickles(), isolate_rng():
                for seed in (torch.manual_seed, np.random.seed, random.seed):  # of graphs that it generates
                    seed(self.seed)
                return known(**place, **self.options, **part)
        except Exception as error:  # whatever a reader of anybody's files may raise
            reason = refused_name(error) or brief(error)
            raise DatasetNotFoundError(
                f"`{self.name}` cannot be read from `{self.root}` ({reason}). Set `root=PATH` to its folder, "
                "`download=True` to fetch it, or `options` to what the class takes."
            ) from error

    def _graphs(self, split: str, part: Mapping[str, Any]) -> list[Saved]:
        dataset = self._dataset(part)
        return [self._one(f"{self.name} {split}[{number}]", dataset[number]) for number in range(len(dataset))]

    def _one(self, name: str, graph: Any) -> Saved:
        if not isinstance(graph, Data):
            raise DataError(f"`{name}` must be a `Data` with one kind of nodes, got {type(graph).__name__}.")
        values = graph.to_dict()
        masks = {key: values.pop(key) for key in MASKS if key in values}
        if len(masks) == len(MASKS):  # otherwise they are no splits
            values |= {key: self._column(one) for key, one in masks.items()}
        return made(name, values)

    def _column(self, masks: Tensor) -> Tensor:
        """Return the mask of the split that is wanted."""
        if masks.dim() < 2:
            return masks
        if self.fold >= masks.shape[1]:
            raise DataError(f"`fold` must be below {masks.shape[1]}, the number of splits, got {self.fold}.")
        return masks[:, self.fold]


PUBLISHED: dict[str, dict[str, Any]] = {  # the argument for a split, and its values
    "split": {split: split for split in SPLITS},
    "train": {"train": True, "test": False},
}


def _refused(self: Any) -> None:
    """Take the place of a download."""
    raise FileNotFoundError("its files are missing")
