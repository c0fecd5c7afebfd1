"""Graphs in files of PyTorch, read without running anything that the files may name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.separate import separate
from torch_geometric.data.storage import GlobalStorage

from deq_lightning.data.errors import DataError, DatasetNotFoundError, brief
from deq_lightning.trust import only_plain

SUFFIX = ".pt"
MASKS = ("train_mask", "val_mask", "test_mask")
KNOWN = (Data, GlobalStorage, DataEdgeAttr, DataTensorAttr)  # what a saved `Data` names beside tensors
SAVE_PLAIN = "Save it by `torch.save({'x': x, 'edge_index': edge_index, 'y': y}, FILE)`"


class Saved(NamedTuple):
    """A graph and where it is saved.

    Attributes:
        name: path of its file, with its number if that holds several.
        graph: the graph, with features of single precision and a weight for every edge.
    """

    name: str
    graph: Data


class Widths(NamedTuple):
    """What all graphs of a data module have alike.

    Attributes:
        features: of a node.
        edge_features: of an edge, in `edge_attr`; 0 where there is none.
    """

    features: int
    edge_features: int

    @classmethod
    def of(cls, graph: Data) -> "Widths":
        """Return those of a graph."""
        attributes = graph.edge_attr
        return cls(graph.x.shape[1], 0 if attributes is None else attributes.flatten(1).shape[1])


def read_graphs(path: Path, name: str | None = None) -> list[Saved]:
    """Return the graphs of a file: a `Data` of PyTorch Geometric, a dictionary of its tensors, a list, or a dataset.

    Args:
        path: the file.
        name: of the file, for messages and tables. None: its path.

    Raises:
        DatasetNotFoundError: if it cannot be read.
        DataError: if something in it is no graph.
    """
    name = name or str(path)
    try:
        with only_plain(*KNOWN):
            content = torch.load(path, map_location="cpu", weights_only=True)
        content = _apart(content)
        several = isinstance(content, list | tuple)
        found = [_values(one) for one in (content if several else [content])]
    except Exception as error:  # whatever reading a file of anybody may raise
        raise DatasetNotFoundError(f"`{name}` {_reason(error)}. {SAVE_PLAIN}, or the `Data` itself.") from error
    if not found:
        raise DataError(f"`{name}` must hold a graph or more, got none. Leave it out.")
    return [made(f"{name}[{number}]" if several else name, values) for number, values in enumerate(found)]


def _apart(content: Any) -> Any:
    """Return the graphs that an `InMemoryDataset` saves as one, with where each begins."""
    if not (isinstance(content, tuple) and len(content) == 3 and content[2] is Data):
        return content
    values, slices, _ = content
    together = Data.from_dict(values)
    if not slices:
        return [together]
    count = len(next(iter(slices.values()))) - 1
    return [separate(Data, together, number, slices, decrement=False) for number in range(count)]


def _values(one: Any) -> Mapping[str, Any]:
    """Return the entries of a graph by name."""
    values = one.to_dict() if isinstance(one, Data) else one
    if not isinstance(values, dict):
        raise TypeError(f"a graph must be a `Data` or a dictionary, got {type(one).__name__}")
    return values


def _reason(error: Exception) -> str:
    """Say why a file cannot be read; PyTorch's own words advise to run what is in it."""
    if named := refused_name(error):
        return named
    reason = f" ({brief(error)})" if isinstance(error, TypeError | OSError) else ""
    return f"cannot be read as graphs, it is damaged or holds something else{reason}"


def refused_name(error: Exception) -> str | None:
    """Say what a file names that PyTorch has refused to unpickle."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named and f"names `{named[1]}`, and must hold nothing but tensors and graphs: it was not run"


def made(name: str, values: Mapping[str, Any]) -> Saved:
    """Return a graph of these entries.

    Raises:
        DataError: if they make none.
    """
    x, edges = (_tensor(name, values, key) for key in ("x", "edge_index"))
    for key, value in (("x", x), ("edge_index", edges)):
        if value is None:
            raise DataError(f"`{name}` must have `{key}`, got {', '.join(map(str, values)) or 'nothing'}. Add it.")
    assert x is not None and edges is not None
    if x.dim() != 2 or 0 in x.shape:
        raise DataError(f"`x` of `{name}` must be numbers (nodes, features), got {tuple(x.shape)}. Reshape it.")
    _check_edges(name, edges, len(x))
    graph = Data(x=_numbers(name, "x", x), edge_index=edges.long())
    weight = _tensor(name, values, "edge_weight")
    weight = torch.ones(edges.shape[1]) if weight is None else weight.squeeze(1) if weight.dim() == 2 else weight
    graph.edge_weight = _numbers(name, "edge_weight", _of_edges(name, "edge_weight", weight, graph, 1))
    attributes = _tensor(name, values, "edge_attr")
    if attributes is not None:
        attributes = attributes[:, None] if attributes.dim() == 1 else attributes
        graph.edge_attr = _numbers(name, "edge_attr", _of_edges(name, "edge_attr", attributes, graph, 2))
    for key in ("y", *MASKS):
        if (value := _tensor(name, values, key)) is not None:
            graph[key] = value
    return Saved(name, graph)


def _tensor(name: str, values: Mapping[str, Any], key: str) -> Tensor | None:
    """Return a value, which must be a tensor with its numbers in memory."""
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_cpu or value.is_complex():
        raise DataError(f"`{key}` of `{name}` must be a dense tensor of real numbers, got {type(value).__name__}.")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # it could fill any memory
        raise DataError(f"`{key}` of `{name}` must have all its numbers in the file. Save `{key}.clone()`.")
    return value


def _numbers(name: str, key: str, value: Tensor) -> Tensor:
    """Return numbers in single precision, which must be finite."""
    value = value.float()
    if not value.isfinite().all():
        raise DataError(
            f"`{key}` of `{name}` must be finite, got {value[~value.isfinite()][0]}. Repair it, or leave it out."
        )
    return value


def _check_edges(name: str, edges: Tensor, nodes: int) -> None:
    whole = not (edges.is_floating_point() or edges.dtype == torch.bool) or not edges.numel()
    if edges.dim() != 2 or len(edges) != 2 or not whole:
        raise DataError(
            f"`edge_index` of `{name}` must be whole numbers (2, edges), got {edges.dtype} {tuple(edges.shape)}."
        )
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
        wrong = int(edges.min()) if edges.min() < 0 else int(edges.max())
        raise DataError(
            f"`edge_index` of `{name}` must be numbers of its nodes, 0 to {nodes - 1}, got {wrong}. Repair it, or "
            "leave that graph out."
        )


def _of_edges(name: str, key: str, value: Tensor, graph: Data, dimensions: int) -> Tensor:
    if value.dim() != dimensions or len(value) != graph.num_edges:
        raise DataError(
            f"`{key}` of `{name}` must have one row for each of the {graph.num_edges} edges, got {tuple(value.shape)}."
        )
    return value


def files_in(folder: Path) -> list[Path]:
    """Return the files of graphs directly in a folder, in the order of their names."""
    return sorted(file for file in folder.glob(f"*{SUFFIX}") if file.is_file() and file.name[0] != ".")


def read_folder(folder: Path) -> list[Saved]:
    """Return the graphs of all files in a folder.

    Raises:
        DatasetNotFoundError: if there are none.
    """
    files = files_in(folder)
    if not files:
        raise DatasetNotFoundError(
            f"`{folder}` has no graphs in it (*{SUFFIX}). Set `root=PATH` to a folder with some."
        )
    return [graph for file in files for graph in read_graphs(file)]


def read_one(file: Path) -> Saved:
    """Return the one graph of a file in a folder of new ones.

    Raises:
        DataError: if it holds several, or none.
    """
    graphs = read_graphs(file, file.name)
    if len(graphs) > 1:
        raise DataError(f"`{file.name}` must hold one graph, got {len(graphs)}. Name it by itself, without its folder.")
    return graphs[0]


def check_widths(saved: Saved, widths: Widths) -> None:
    """Raise a DataError unless a graph has as many features as the others."""
    for key, found, wanted in zip(("x", "edge_attr"), Widths.of(saved.graph), widths, strict=True):
        if found != wanted:
            raise DataError(
                f"`{key}` of `{saved.name}` must have {wanted} features, as the graphs before it, got {found}."
            )
