"""Images and the weights of convolutions with the channels last."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle


class ChannelsLast:
    """Switches the memory format of a network, and of the images it is given.

    Args:
        net: the network.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._handle: RemovableHandle | None = None

    def on(self) -> None:
        """Store channels last; nothing happens where they already are."""
        if self._handle is None:
            self.net.to(memory_format=torch.channels_last)
            self._handle = self.net.register_forward_pre_hook(_convert)

    def off(self) -> None:
        """Store channels first again: not all of PyTorch's utilities take another format."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            self.net.to(memory_format=torch.contiguous_format)


def _convert(net: nn.Module, inputs: Any) -> Any:
    """Give images the memory format of the network."""
    del net

    def convert(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    return tree_map_only(Tensor, convert, inputs)
