"""Where a graph begins: the tensors that a map uses and has not made."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.autograd.graph import Node

# What has no tensors of the map, and of what belongs to a run what leads everywhere.
ENDS = (type(None), type, str, bytes, int, float, ModuleType, Callback, pl.Trainer)
FAR = 10_000  # objects looked at, nearest first

Edge = tuple[Node, int]  # a node and the number of one of its outputs


def node_count() -> int:
    """Return a number that all nodes made later reach, and none made before."""
    return torch._C._autograd._get_sequence_nr()


def begins(fz: Tensor, since: int, besides: Tensor) -> Iterator[Tensor | Edge]:
    """Yield where the graph of an evaluation begins: its leaves, and the edges to what was made before it.

    Args:
        fz: the value.
        since: `node_count()` before the evaluation.
        besides: a leaf that does not count.
    """
    nodes: list[tuple[Node | None, int]] = [(fz.grad_fn, 0)]
    seen: set[Any] = set()
    while nodes:
        node, output = nodes.pop()
        if node is None or (node, output) in seen:
            continue
        seen.add((node, output))
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            if leaf is not besides:
                yield leaf
        elif node._sequence_nr() < since:
            yield node, output
        elif node not in seen:
            seen.add(node)
            nodes.extend(node.next_functions)


def ports(f: Callable[..., Any], beginnings: list[Tensor | Edge]) -> tuple[list[Tensor], bool]:
    """Return the tensors at which a graph begins, and whether these are all.

    Those of its edges are not to be had from the graph, and are looked for in what f refers to.

    Args:
        f: the map.
        beginnings: what `begins` yields.
    """
    found = [one for one in beginnings if isinstance(one, Tensor)]
    edges = {one for one in beginnings if not isinstance(one, Tensor)}
    tensors = _tensors_of(f)
    while edges:
        tensor = next(tensors, None)
        if tensor is None:
            break
        node = tensor.grad_fn
        if node is not None and (node, tensor.output_nr) in edges:
            edges.remove((node, tensor.output_nr))
            found.append(tensor)
    return found, not edges


def _tensors_of(root: Any) -> Iterator[Tensor]:
    """Yield the tensors that an object refers to, directly or through others."""
    queue, seen = deque([root]), dict[int, Any]()
    while queue and len(seen) < FAR:
        part = queue.popleft()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, Tensor):
            yield part
        elif not isinstance(part, ENDS):
            queue.extend(_parts(part))


def _parts(part: Any) -> Iterable[Any]:
    """Return what an object refers to: a function, a method, a container, a module, or a plain object."""
    match part:
        case dict():
            return part.values()
        case list() | tuple() | set():
            return islice(part, FAR)
        case partial():
            return part.func, part.args, part.keywords
        case MethodType():
            return part.__self__, part.__func__
        case FunctionType():
            return _of_function(part)
    return getattr(part, "__dict__", {}).values()


def _of_function(function: FunctionType) -> Iterator[Any]:
    """Yield what a function refers to: by its closure, its defaults and its global names."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not filled yet
            yield cell.cell_contents
    yield from (function.__defaults__, function.__kwdefaults__)
    yield from (function.__globals__.get(name) for name in function.__code__.co_names)
