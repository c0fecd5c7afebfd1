"""MIND for images."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deq_lightning.configured import one_of, several_sizes, sizes, whole, within
from deq_lightning.models.base import Equilibrium, ImplicitModel, Network
from deq_lightning.models.layers.selection import Flops, Introspection, Selection, chosen
from deq_lightning.models.mind.layers import FixedPointBlock, FixedPointLayer, Iteration, Stage
from deq_lightning.solvers import FixedPointIteration, Solver

Variant = Literal["learned", "reduced", "fixed", "uniform", "all", "none"]
Head = Literal["flatten", "average"]
LEARNED: tuple[Variant, ...] = ("learned", "reduced")  # variants with an introspection network


class Thought(NamedTuple):
    """What a network with layers to choose from makes of a batch."""

    logits: Tensor
    equilibria: list[Equilibrium]  # of every layer; samples for which it is off are at rest, after 0 steps
    choice: Tensor  # (batch, layers) 1 where the layer is on, else 0, with the gradient of a relaxed choice


class MIND(Network):
    r"""Convolutional stages, each with a fixed-point layer that an introspection network turns on for a sample or not.

    Stage l computes :math:`v_l`, convolution, ReLU and batch normalisation; its fixed-point layer solves
    :math:`z = \mathrm{relu}(s\,\mathrm{GN}(W_l z) + v_l)` from :math:`v_l`; where it is off, :math:`z = v_l`. The
    introspection network sees the means over positions of the activations after an ordinary pass, and is kept from
    changing them. In training all layers are solved for all samples, because the gradient of a choice needs to know
    both outcomes; in evaluation a layer is solved for those samples alone for which it is on.

    No code was published, and no sizes of the introspection network and the head; those here lead to about the
    parameters that the paper counts: 4,925,650 for CIFAR-10, 5,008,540 for CIFAR-100, and 295,939 for introspection.

    (batch, in_channels, height, width) to logits (batch, num_classes).

    Args:
        in_channels: channels of the images.
        num_classes: classes, 2 or more.
        image_size: height and width in pixels, for the `flatten` head. None: 32.
        widths: channels of each stage.
        pooling: factor of the maximum pooling after each stage; 1: none.
        head: what classifies: a hidden layer on all activations of the last stage (`flatten`), or a linear layer on
            their means over positions (`average`).
        head_width: width of that hidden layer.
        variant: who chooses. `learned`: the introspection network. `reduced`: the same, which sees all stages but the
            last. `fixed`: the entropy of the prediction of an ordinary pass. `uniform`: nobody, all stages together are
            one equilibrium. `all`: every layer is on. `none`: there are no fixed-point layers.
        selection: whether each layer is chosen by itself (`independent`), or one or none of them (`categorical`, as the
            paper's Eq. 6).
        introspection_widths: of the hidden layers of the introspection network.
        thresholds: for `fixed`, the entropy in units of its maximum, in [0, 1], from which each layer is on.
        injection: whether :math:`v_l` enters every step. Without, as the paper prints it, it is only where the
            iteration starts, and earlier stages learn nothing unless the strategy goes through the start:
            `JFB(through_start=True)`, or plain unrolling.
        scale: s, in (0, 1): the smaller, the closer the step is to a contraction.
        groups: of the group normalisation GN; divides every width.
        solver: finds the equilibria. None: plain iteration, at most 30 steps in training and 100 in evaluation.

    Attributes:
        temperature: of the relaxed choice in training, above 0.

    Raises:
        ValueError: if an argument is out of its range, or the images are too small for so many stages.

    References:
        Mathur, Pearlmutter and Plis, "MIND over body: adaptive thinking using dynamic computation", ICLR 2025.
    """

    temperature = 1.0
    thresholds: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int | None = None,
        widths: Sequence[int] = (64, 128, 256),
        pooling: int = 2,
        head: Head = "flatten",
        head_width: int = 920,
        variant: Variant = "learned",
        selection: Selection = "independent",
        introspection_widths: Sequence[int] = (512, 128),
        thresholds: Sequence[float] = (0.0, 0.4, 0.8),
        injection: bool = True,
        scale: float = 0.9,
        groups: int = 4,
        solver: Solver | None = None,
    ) -> None:
        super().__init__()
        self._counted: dict[tuple[int, int], Flops] = {}
        image_size = 32 if image_size is None else image_size
        sizes(in_channels=in_channels, image_size=image_size, pooling=pooling, head_width=head_width, groups=groups)
        whole(2, num_classes=num_classes)
        several_sizes(widths=widths)
        several_sizes(fewest=0, introspection_widths=introspection_widths)
        one_of(get_args(Head), head=head)
        one_of(get_args(Variant), variant=variant)
        one_of(get_args(Selection), selection=selection)
        within("(0, 1)", scale=scale)
        _check(widths, groups, image_size, pooling)
        _check_choice(variant, len(widths), thresholds)
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        self.variant, self.selection = variant, selection
        self.seen = len(widths) - (variant == "reduced")
        self.register_buffer("thresholds", torch.tensor(list(thresholds)), persistent=False)
        self.pool = nn.MaxPool2d(pooling) if pooling > 1 else nn.Identity()
        solver = FixedPointIteration(max_steps=30, eval_max_steps=100) if solver is None else solver
        stages = [Stage(*size) for size in pairwise((in_channels, *widths))]
        steps = [Iteration(width, groups, scale) for width in widths] if variant != "none" else []
        layers: list[ImplicitModel] = [FixedPointLayer(step, injection, solver) for step in steps]
        if variant == "uniform":
            stages, layers = stages[:1], [FixedPointBlock(steps, stages[1:], self.pool, solver)]
        self.stages, self.layers = nn.ModuleList(stages), nn.ModuleList(layers)
        if variant in LEARNED:
            self.introspection = Introspection(sum(widths[: self.seen]), len(widths), introspection_widths)
        side = image_size // pooling ** len(widths)
        self.head = _head(widths[-1], num_classes, side if head == "flatten" else None, head_width)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Equilibrium]]:
        """Return the logits, and the equilibria of the fixed-point layers."""
        thought = self.think(x)
        return thought.logits, thought.equilibria

    def think(self, x: Tensor, choice: Tensor | None = None) -> Thought:
        """Return the logits, the equilibria, and which layers were on.

        Args:
            x: the images.
            choice: (batch, layers) which layers shall be on, 1 or 0. None: the variant chooses.
        """
        h = first = self.stages[0](x)
        choice = self.choose(first) if choice is None else choice.to(first)
        equilibria: list[Equilibrium] = []
        for place, stage in enumerate(self.stages):
            h = stage(self.pool(h)) if place else first
            if self.layers:
                layer: Any = self.layers[place]
                z, equilibrium = layer.by_choice(layer.inject(h), choice[:, place])
                h = layer.readout(z)
                equilibria.append(equilibrium)
        return Thought(self.head(self.pool(h)), equilibria, choice)

    def choose(self, first: Tensor) -> Tensor:
        """Return (batch, layers) which layers are on, from the activations of the first stage."""
        if self.variant in LEARNED:
            means = torch.cat([h.mean(dim=(2, 3)) for h in self._glance(first)[: self.seen]], dim=1)
            return chosen(self.introspection(means), self.selection, self.temperature, self.training).to(first)
        if self.variant == "fixed":
            p = self.head(self.pool(self._glance(first)[-1])).detach().float().softmax(dim=1)
            entropy = torch.special.entr(p).sum(dim=1, keepdim=True) / math.log(self.num_classes)
            return (entropy >= self.thresholds).to(first)
        return first.new_ones(len(first), len(self.layers))

    @torch.no_grad()
    def _glance(self, first: Tensor) -> list[Tensor]:
        """Return the activations of all stages in an ordinary pass."""
        seen = [first.detach()]
        for stage in self.stages[1:]:
            assert isinstance(stage, Stage)
            seen.append(stage.glance(self.pool(seen[-1])))
        return seen

    def flops(self, height: int, width: int) -> Flops:
        """Return what images of a size cost."""
        if (height, width) not in self._counted:
            self._counted[height, width] = _counted(self, height, width)
        return self._counted[height, width]


@torch.no_grad()
def _counted(net: Any, height: int, width: int) -> Flops:
    """Count the operations of a copy that spends one step in each layer."""
    net = copy.deepcopy(net).eval()
    for layer in net.layers:
        layer.solver = layer.solver.changed(max_steps=1, eval_max_steps=None)
    x = next(net.parameters()).new_zeros(1, net.in_channels, height, width)
    first, off = net.stages[0](x), x.new_zeros(1, len(net.layers))
    steps = [_operations(one.f, one.z) for one in net.think(x, off + 1).equilibria]
    return Flops(_operations(net.think, x, off) + _operations(net.choose, first), steps)


def _operations(run: Callable[..., Any], *arguments: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run(*arguments)
    return counter.get_total_flops()


def _head(width: int, num_classes: int, side: int | None, hidden: int) -> nn.Module:
    """Return what classifies activations of `width` channels; side: their height and width. None: by their means."""
    if side is None:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width * side**2, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes)
    )


def _check(widths: Sequence[int], groups: int, image_size: int, pooling: int) -> None:
    """Raise a ValueError unless the stages fit the groups and the images."""
    for width in widths:
        if width % groups:
            raise ValueError(f"`groups` must divide every one of `widths`, got {groups} for {width}.")
    least = pooling ** len(widths)
    if image_size < least:
        raise ValueError(
            f"`image_size` must be {least} or more for {len(widths)} stages that each divide it by {pooling}, got "
            f"{image_size}. Use fewer `widths`, or `pooling=1`."
        )


def _check_choice(variant: Variant, stages: int, thresholds: Sequence[float]) -> None:
    """Raise a ValueError unless the variant is one for so many stages."""
    if variant == "reduced" and stages == 1:
        raise ValueError("`variant` 'reduced' sees all stages but the last, so `widths` must have 2 or more, got 1.")
    if variant == "fixed" and len(thresholds) != stages:
        raise ValueError(f"`thresholds` must be one for each of `widths`, {stages}, got {len(thresholds)}.")
    within("[0, 1]", thresholds=thresholds)
