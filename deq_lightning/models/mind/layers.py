"""What MIND is made of: stages, and a fixed-point layer on each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import CombinationError
from deq_lightning.models.base import Equilibrium, ImplicitModel, Shared, Start
from deq_lightning.models.layers.norms import GroupNorm
from deq_lightning.solvers import Solver


class Stage(nn.Module):
    """Convolution, ReLU and batch normalisation: (batch, in_channels, height, width) to (batch, width, height, width).

    Args:
        in_channels: channels of the input.
        width: channels of the output.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        return self.norm(F.relu(self.conv(x)))

    def glance(self, x: Tensor) -> Tensor:
        """Return the same, without an effect on the statistics that evaluation uses."""
        h, norm = F.relu(self.conv(x)), self.norm
        if not self.training:
            return norm(h)
        return F.batch_norm(h, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    def as_affine(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the activations, and the factor and the summand of each channel that the normalisation has come to."""
        h, norm = F.relu(self.conv(x)), self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        mean, var = norm.running_mean, norm.running_var
        if self.training:
            var, mean = torch.var_mean(h, dim=(0, 2, 3), correction=0)
        factor = norm.weight * torch.rsqrt(var + norm.eps)
        return norm(h), (factor, norm.bias - mean * factor)


class Iteration(nn.Module):
    r"""The step of a fixed-point layer: :math:`z \mapsto \mathrm{relu}(s\,\mathrm{GN}(W z) + u)`.

    Args:
        width: channels of the state.
        groups: groups of the normalisation.
        scale: s, below 1.
    """

    def __init__(self, width: int, groups: int, scale: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = GroupNorm(groups, width)
        self.scale = scale

    def forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        """Return the next state; without an injection u it is 0."""
        h = self.scale * self.norm(self.conv(z))
        return F.relu(h if u is None else h + u)


class FixedPointLayer(ImplicitModel):
    """An equilibrium on the activations of a stage, from which it starts: (batch, width, height, width) to the same.

    Args:
        step: its map.
        injection: whether the activations enter every step.
        solver: finds the equilibrium.
    """

    def __init__(self, step: Iteration, injection: bool, solver: Solver) -> None:
        super().__init__(solver)
        self.step = step
        self.injection = injection

    def equilibrium(self, u: Tensor, start: Start | None = None) -> Equilibrium:
        """Solve, and attach the gradient.

        Raises:
            CombinationError: if there is no injection and the strategy knows no other way to the stages before.
        """
        if not (self.injection or self.gradient.unrolled or self.gradient.through_start) and u.requires_grad:
            raise CombinationError(
                "without `injection` a gradient reaches earlier stages through the start alone, which "
                f"`{type(self.gradient).__name__}` leaves out as it is. Use `--gradient JFB --gradient.through_start "
                "true` or `--gradient Unrolled`."
            )
        return super().equilibrium(u, start)

    def inject(self, x: Tensor) -> Tensor:
        """Return the activations."""
        return x

    def initial_state(self, u: Tensor) -> Tensor:
        """Return the activations."""
        return u

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        """Return the next state."""
        return self.step(z, u if self.injection else None)

    def readout(self, z: Tensor) -> Tensor:
        """Return the equilibrium."""
        return z


@dataclass
class Normalisations(Shared):
    """Factor and summand of each channel of the stages after the first, the same for all samples and evaluations."""

    affine: list[tuple[Tensor, Tensor]]


class BlockInjection(NamedTuple):
    """What the joint step of all stages needs beside its state."""

    activations: tuple[Tensor, ...]  # of every stage, after one pass
    normalisations: Normalisations


class FixedPointBlock(ImplicitModel):
    """All stages as one equilibrium: the state holds the activations of each, and each is injected into the next.

    The batch normalisation of the stages is that of one ordinary pass before: statistics that changed with the state
    would make samples depend on each other, and the map on how often it was evaluated.

    Args:
        steps: the map of every stage.
        stages: the stages after the first.
        pool: between two stages.
        solver: finds the equilibrium.

    Shapes:
        The activations of the first stage to those of all.
    """

    def __init__(self, steps: Sequence[Iteration], stages: Sequence[Stage], pool: nn.Module, solver: Solver) -> None:
        super().__init__(solver)
        self.steps = nn.ModuleList(steps)
        self.stages = nn.ModuleList(stages)
        self.pool = pool

    def inject(self, x: Tensor) -> BlockInjection:
        """Pass once through the stages."""
        activations, affine = [x], []
        for stage in self.stages:
            assert isinstance(stage, Stage)
            h, normalisation = stage.as_affine(self.pool(activations[-1]))
            activations.append(h)
            affine.append(normalisation)
        return BlockInjection(tuple(activations), Normalisations(affine))

    def initial_state(self, u: BlockInjection) -> tuple[Tensor, ...]:
        """Return the activations after that pass."""
        return u.activations

    def cell(self, z: tuple[Tensor, ...], u: BlockInjection) -> tuple[Tensor, ...]:
        """Return the next state of every stage."""
        injected = [u.activations[0]]
        for stage, before, (factor, summand) in zip(self.stages, z, u.normalisations.affine, strict=False):
            assert isinstance(stage, Stage)
            h = F.relu(stage.conv(self.pool(before)))
            injected.append(h * factor[:, None, None] + summand[:, None, None])
        return tuple(step(own, one) for step, own, one in zip(self.steps, z, injected, strict=True))

    def readout(self, z: tuple[Tensor, ...]) -> Tensor:
        """Return the activations of the last stage."""
        return z[-1]
