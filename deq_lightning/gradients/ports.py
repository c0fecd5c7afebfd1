"""Where a graph begins: the tensors that a map uses and has not made."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

PLAIN = (type, str, bytes, int, float, ModuleType)
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
        else:
            queue.extend(_parts(part))


def _parts(part: Any) -> Iterator[Any]:
    """Yield what an object refers to: a function, a method, a container, or anything with attributes."""
    if part is None or isinstance(part, PLAIN):
        return
    if isinstance(part, nn.Module):
        yield from vars(part).values()
    elif isinstance(part, dict):
        yield from part.values()
    elif isinstance(part, (list, tuple, set)):
        yield from islice(part, FAR)
    else:
        for cell in getattr(part, "__closure__", None) or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                pass
        names = getattr(getattr(part, "__code__", None), "co_names", ())
        yield from (part.__globals__.get(name) for name in names)
        for name in ("__self__", "__func__", "__defaults__", "__kwdefaults__", "func", "args", "keywords"):
            yield getattr(part, name, None)
        yield from getattr(part, "__dict__", {}).values()
