"""A convolutional cell that solves problems of any size, by as many steps as they need."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import at_least, one_of, whole, within
from deq_lightning.models.base import ImplicitModel
from deq_lightning.models.layers.norms import PositionNorm
from deq_lightning.solvers import FixedPointIteration, Solver

Dimensions = Literal[1, 2]


class EquilibriumReasoner(ImplicitModel):
    r"""Labels every position of a sequence or a picture, whose size may be another in evaluation than in training.

    The cell looks one position far, so what depends on distant ones takes as many steps as they are apart:
    :math:`h = m \odot \mathrm{relu}(N(W_1 (m \odot z)))`, :math:`f(z, u) = N(\mathrm{relu}(z + N(W_2 h + u)))`, with
    convolutions of width 3, N group normalisation at each position, u a convolution of the input, and m = 0 where
    nothing may pass. Without the input at every step (recall) an equilibrium could not depend on it.

    (batch, in_channels, length) or (batch, in_channels, height, width) to logits (batch, num_classes, ...).

    Args:
        in_channels: channels of the input.
        num_classes: classes of a position, 2 or more.
        dimensions: of the input's positions: 1 or 2.
        width: channels of the state.
        groups: groups of the normalisation; they divide `width`.
        masked: whether nothing passes where all channels of the input are 0, as the walls of a maze: without that,
            walls leak, and large mazes fail.
        random_start: share of the samples that start at random in training, in [0, 1], so that the equilibrium does not
            come to depend on the start.
        start_std: standard deviation of such a start.
        solver: finds the equilibrium. None: plain iteration, at most 40 steps in training and 640 in evaluation.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Bansal et al., "End-to-end algorithm synthesis with recurrent networks", NeurIPS 2022, arXiv:2202.05826.
        Anil et al., "Path independent equilibrium models can better exploit test-time computation", NeurIPS 2022.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        dimensions: Dimensions = 1,
        width: int = 48,
        groups: int = 4,
        masked: bool = True,
        random_start: float = 0.5,
        start_std: float = 1.0,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(FixedPointIteration(max_steps=40, eval_max_steps=640) if solver is None else solver)
        whole(1, in_channels=in_channels, width=width, groups=groups)
        whole(2, num_classes=num_classes)
        one_of((1, 2), dimensions=dimensions)
        within("[0, 1]", random_start=random_start)
        at_least(0, start_std=start_std)
        if width % groups:
            raise ValueError(f"`groups` must divide `width`, got {groups} for {width}. Use one of its divisors.")
        self.in_channels, self.num_classes, self.dimensions = in_channels, num_classes, dimensions
        self.masked = masked
        self.random_start, self.start_std = random_start, start_std
        conv: type[nn.Conv1d | nn.Conv2d] = nn.Conv1d if dimensions == 1 else nn.Conv2d
        self.lift = conv(in_channels, width, 3, padding=1)
        self.inner, self.outer = (conv(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(PositionNorm(groups, width) for _ in range(3))
        self.head = conv(width, num_classes, 1)

    def inject(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the convolution of the input, and where something may pass; None: everywhere."""
        if x.ndim != self.dimensions + 2 or x.shape[1] != self.in_channels:
            sizes = f"(batch, {self.in_channels}, {'length' if self.dimensions == 1 else 'height, width'})"
            raise ValueError(f"The input must be {sizes}, got {tuple(x.shape)}. Set `dimensions` and `in_channels`.")
        return self.lift(x), (x != 0).any(dim=1, keepdim=True).to(x.dtype) if self.masked else None

    def initial_state(self, u: tuple[Tensor, Tensor | None]) -> Tensor:
        """Return zeros."""
        return self.zeros(u[0].shape)

    def cell(self, z: Tensor, u: tuple[Tensor, Tensor | None]) -> Tensor:
        """Return the next state."""
        injection, mask = u
        first, second, third = self.norms
        h = F.relu(first(self.inner(_through(z, mask))))
        return third(F.relu(z + second(self.outer(_through(h, mask)) + injection)))

    def readout(self, z: Tensor) -> Tensor:
        """Return the logits of every position."""
        return self.head(z)


def _through(z: Tensor, mask: Tensor | None) -> Tensor:
    return z if mask is None else z * mask
