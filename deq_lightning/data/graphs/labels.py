"""What the labels of saved graphs mean, and which graphs or nodes train, validate and test."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from deq_lightning.data.base import Size, drawn, samples_in
from deq_lightning.data.errors import DataError, SplitError
from deq_lightning.data.graphs.saved import MASKS, Saved
from deq_lightning.samples import GRAPHS, NODE_LABELS, NODES


def kind_of(graphs: Sequence[Saved]) -> str:
    """Return the kind of samples that graphs are, by the shapes of their labels `y`.

    Raises:
        DataError: if one has no labels, or others than the graphs before it.
    """
    kinds = [GRAPHS, NODES, NODE_LABELS]
    for name, graph in graphs:
        if graph.y is None:
            raise DataError(f"`{name}` must have `y`, a class, or one for each node. Add it.")
        y, nodes = graph.y, graph.num_nodes
        per_node, table = y.shape in ((nodes,), (nodes, 1)), y.dim() == 2 and len(y) == nodes and y.shape[1] > 1
        fits = {GRAPHS: y.numel() == 1, NODES: per_node, NODE_LABELS: table}
        kinds = [kind for kind in kinds if fits[kind]]
        if not kinds:
            raise DataError(
                f"`y` of `{name}` must be one class, or as of the other graphs one for each of its {nodes} nodes, or "
                f"(nodes, labels) of 0 and 1, got {tuple(y.shape)}."
            )
    return kinds[0]


def number_labels(graphs: Sequence[Saved], kind: str) -> int:
    """Bring the labels of graphs to the shape and type that tasks take, and return how many different there are.

    Raises:
        DataError: if they are no such labels.
    """
    for name, graph in graphs:
        y = graph.y
        if kind == NODE_LABELS:
            if y.shape[1] != graphs[0].graph.y.shape[1] or not ((y == 0) | (y == 1)).all():
                raise DataError(
                    f"`y` of `{name}` must be labels of 0 and 1, as many as the other graphs have, got others."
                )
            graph.y = y.float()
        elif y.is_floating_point():
            raise DataError(f"`y` of `{name}` must be whole numbers, got {y.dtype}. Save classes as `y.long()`.")
        else:
            graph.y = y.long().reshape(-1)
    return graphs[0].graph.y.shape[1] if kind == NODE_LABELS else _classes(graphs)


def _classes(graphs: Sequence[Saved]) -> int:
    found = torch.cat([graph.y for _, graph in graphs]).unique()
    if len(found) < 2:
        raise DataError(
            f"`y` must be of two classes or more, got {found.tolist()} for all, from `{graphs[0].name}` on."
        )
    wrong = found[(found < 0) | (found >= len(found))]
    if len(wrong):
        name = next(name for name, graph in graphs if (graph.y == wrong[0]).any())
        raise DataError(
            f"`y` of `{name}` must be classes numbered 0 to {len(found) - 1}, as there are {len(found)}, got "
            f"{wrong[0]}. Number them anew."
        )
    return len(found)


def has_masks(graphs: Sequence[Saved]) -> bool:
    """Say whether masks tell the nodes that train, validate and test.

    Raises:
        DataError: if they do not so everywhere, or are no masks.
    """
    given = [(name, graph, [key for key in MASKS if key in graph]) for name, graph in graphs]
    if not any(keys for _, _, keys in given):
        return False
    for name, graph, keys in given:
        masks = [graph[key] for key in keys]
        if len(keys) < len(MASKS) or any(one.dtype != torch.bool or one.shape != (graph.num_nodes,) for one in masks):
            raise DataError(
                f"`{name}` must have `{'`, `'.join(MASKS)}`, each with True or False for its {graph.num_nodes} nodes, "
                f"got {', '.join(f'{key} {tuple(graph[key].shape)}' for key in keys) or 'none'}."
            )
        if (sum(one.long() for one in masks) > 1).any():
            raise DataError(f"the masks of `{name}` must not share nodes. Take them out of one of the masks.")
    for key in MASKS:
        if not any(graph[key].any() for _, graph in graphs):
            raise SplitError(
                f"`{key}` must have nodes in it, got none in any graph. Name some, or leave out the masks."
            )
    return True


def split(count: int, sizes: Mapping[str, Size], seed: int, labels: Tensor | None, unit: str) -> dict[str, np.ndarray]:
    """Return the numbers of the graphs or nodes of each split, ascending; what is left of them trains.

    Args:
        count: how many there are.
        sizes: of the other splits, by their names.
        seed: fixes the choice.
        labels: (count,) class of each, whose proportions all splits have. None: any are chosen.
        unit: what they are, for messages.

    Raises:
        SplitError: if the sizes do not fit.
    """
    counts = {name: samples_in(size, count) for name, size in sizes.items()}
    _check_counts(count, counts, labels, unit)
    return drawn(count, counts, seed, None if labels is None else labels.numpy())


def _check_counts(count: int, counts: Mapping[str, int], labels: Tensor | None, unit: str) -> None:
    of_class = torch.ones(1).long() * count if labels is None else labels.bincount()
    least = len(of_class)
    if counts and of_class.min() <= len(counts):
        rare = f"{unit} of class {int(of_class.argmin())}" if labels is not None else unit
        raise SplitError(
            f"there must be {len(counts) + 1} or more {rare}, one for each split, got {int(of_class.min())}. Add some."
        )
    for name, size in counts.items():
        if size < least:
            raise SplitError(f"`{name}_size` must stand for {least} {unit} or more, got {size} of {count}.")
    if count - sum(counts.values()) < least:
        taken = " + ".join(f"`{name}_size`" for name in counts)
        raise SplitError(
            f"{taken} must leave {least} {unit} or more to train on, got {sum(counts.values())} of {count}."
        )
