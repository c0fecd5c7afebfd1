"""A map as a function of everything that it uses: what derivatives need to know, and closures hide."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

CHANGED = (
    "`f` does not use the parameters any more that it was solved with, so it cannot be differentiated here. Under "
    "`torch.func.functional_call` it must belong to an `ImplicitModel`, or take its parameters as arguments."
)


class Lifted:
    """A map f whose outside tensors (parameters, injection) have become arguments.

    They are found by watching one evaluation, whose value is `fz`.

    Args:
        f: the map, of (batch, dim) tensors.
        z: where to watch it.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], z: Tensor) -> None:
        self.f = f
        watch = Watch(z)
        with torch.no_grad(), watch:
            self.fz = f(z)
        self.outside = watch.outside
        self.tensors = [tensor for tensor in self.outside.values() if matters(tensor)]

    def at(self, tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the map with these in place of its outside tensors.

        Raises:
            RuntimeError: when it is evaluated, if its parameters are not those that were watched.
        """
        others = self.outside | {id(old): new for old, new in zip(self.tensors, tensors, strict=True)}

        def f(z: Tensor) -> Tensor:
            with Replace(others):
                return self.f(z)

        return f


class Watch(TorchFunctionMode):
    """Collects the tensors that operations take and none has made.

    Args:
        z: the argument, which does not count.
    """

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.inside = {id(z): z}  # kept, because the ids of dead ones are used again
        self.outside: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Watch one operation."""
        del types
        for part in tree_iter((args, kwargs)):
            if isinstance(part, Tensor) and id(part) not in self.inside:
                self.outside[id(part)] = part
        result = func(*args, **(kwargs or {}))
        for part in tree_iter(result):
            if isinstance(part, Tensor) and id(part) not in self.outside:  # `x.to(x.dtype)` is x
                self.inside[id(part)] = part
        return result


class Replace(TorchFunctionMode):
    """Gives operations other tensors than they ask for.

    Args:
        others: what to give, by the id of what is asked for.
    """

    def __init__(self, others: dict[int, Tensor]) -> None:
        super().__init__()
        self.others = others

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Evaluate one operation."""
        del types
        args, kwargs = tree_map_only(Tensor, self._other, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _other(self, part: Tensor) -> Tensor:
        other = self.others.get(id(part))
        if other is None and isinstance(part, nn.Parameter):
            raise RuntimeError(CHANGED)
        return part if other is None else other


def matters(tensor: Tensor) -> bool:
    """Say whether a transform or a graph may know the tensor, or a graph could not hold it."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return _functorch.is_functorch_wrapped_tensor(tensor)
    moves = forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None
    known = _functorch.is_functorch_wrapped_tensor(tensor) or tensor.requires_grad
    return known or moves or tensor.is_inference()
