"""Linear operators on images, of which an observation is made: y = A x."""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from deq_lightning.configured import Configured, above, one_of, sizes, whole, within

Padding = Literal["circular", "zero"]


class Operator(Configured, ABC):
    """A linear map A of images (..., height, width), of spectral norm 1 at most, and its adjoint.

    Two of one class and with the same arguments are equal. To write your own, implement `__call__` and `adjoint`.
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ y."""

    def fault(self, height: int, width: int) -> str | None:
        """Return what must hold for images of a size in pixels, and does not; None if all does."""
        del height, width
        return None

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Blur(Operator):
    """Convolves with a Gaussian, whose values add up to 1: every pixel becomes a mean of those around it.

    Args:
        std: standard deviation of the Gaussian in pixels, above 0.
        kernel_size: height and width of the kernel in pixels, odd, 1 or more.
        padding: what lies beyond the edges: the image again ("circular"), or black ("zero").

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, std: float = 1.0, kernel_size: int = 5, padding: Padding = "circular") -> None:
        above(0, std=std)
        sizes(1, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, got {kernel_size}. Set `kernel_size={kernel_size + 1}`.")
        one_of(get_args(Padding), padding=padding)
        self.std = std
        self.kernel_size = kernel_size
        self.padding = padding

    def __call__(self, x: Tensor) -> Tensor:
        """Return the blurred images."""
        reach = self.kernel_size // 2
        offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        line = (-0.5 * (offsets / self.std).square()).softmax(dim=0)
        mode = "circular" if self.padding == "circular" else "constant"
        padded = F.pad(x.reshape(-1, 1, *x.shape[-2:]), [reach] * 4, mode=mode)
        return F.conv2d(padded, torch.outer(line, line)[None, None]).view_as(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the same: the Gaussian is symmetric."""
        return self(y)

    def fault(self, height: int, width: int) -> str | None:
        """Say whether the kernel goes round the image more than once."""
        if self.padding == "zero" or self.kernel_size // 2 <= min(height, width):
            return None
        return f"`kernel_size` must be {2 * min(height, width) + 1} or less, got {self.kernel_size}"


class Mask(Operator):
    """Sets a share of the pixels to zero, in all channels: those that are missing, the same in every image.

    Args:
        missing: probability of a pixel to be missing, in [0, 1). At 0 the operator is the identity.
        seed: fixes which, 0 or more.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, missing: float = 0.5, seed: int = 0) -> None:
        within("[0, 1)", "At 1 nothing would be seen.", missing=missing)
        whole(0, seed=seed)
        self.missing = missing
        self.seed = seed

    def __call__(self, x: Tensor) -> Tensor:
        """Return the images without the missing pixels."""
        draws = torch.rand(x.shape[-2:], generator=torch.Generator().manual_seed(self.seed))
        return x * (draws >= self.missing).to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the same: the matrix is diagonal."""
        return self(y)


class Downsampling(Operator):
    """Takes the means of square blocks of pixels.

    Args:
        factor: height and width of a block in pixels, 1 or more.

    Raises:
        ValueError: if `factor` is out of its range.
    """

    def __init__(self, factor: int = 2) -> None:
        sizes(1, factor=factor)
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the smaller images."""
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return larger images, in which the mean of a block is spread over it."""
        spread = y.repeat_interleave(self.factor, dim=-2).repeat_interleave(self.factor, dim=-1)
        return spread / self.factor**2

    def fault(self, height: int, width: int) -> str | None:
        """Say whether blocks of that size fill the image."""
        if height % self.factor == width % self.factor == 0:
            return None
        return f"`factor` must divide height and width, got {self.factor}"
