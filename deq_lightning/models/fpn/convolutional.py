"""Fixed point networks, the convolutional image classifiers of the JFB paper."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from deq_lightning.configured import LEAVE_OUT, one_of, sizes, whole, within
from deq_lightning.models.base import CellMap, Equilibrium, ImplicitModel
from deq_lightning.models.fpn.layers import LATENT_NORMS, NETWORKS
from deq_lightning.models.layers.projections import average_over_processes
from deq_lightning.solvers import FixedPointIteration, Solver

MOST_BLOCKS = 10_000  # a module each


class FPN(ImplicitModel):
    """Fixed point network: one of the three convolutional classifiers of the JFB paper.

    In the paper's letters S(z*) with z* = R(z*, Q(x)): an encoder Q, a few latent blocks R, a small head S.

        network   parameters                                      R(z, u)
        mnist      54,352 = Q   4,896 + R  36,992 + S 12,464      gamma · blocks(u + z)
        svhn      163,488 = Q  74,640 + R  73,856 + S 14,992      gamma · blocks(u + z)
        cifar10   843,430 = Q 713,020 + R 110,600 + S 19,810      blocks(u + gamma · z)

    The published numbers, except that the reference registers 163,744 for SVHN: 256 of them in layers it never uses.
    Nothing forces R to be contractive; in practice gamma and the norms see to it. Without norms the published gamma of
    `svhn` does not: a fresh network has a spectral radius of 1.04. With `gamma` at 0.8 or less it converges.

    Args:
        network: which of the three. Its published values stand where the arguments below are None.
        in_channels: channels of an image (published: 1, 3, 3).
        image_size: height and width of an image in pixels, 3 or more (28, 32, 32).
        num_classes: classes to predict.
        channels: channels of the latent map, 4 or more (32, 64, 35); the narrower layers follow in proportion.
        latent_blocks: residual blocks in R, 1 or more (2, 1, 5).
        gamma: factor in (0, 1) on what R returns, or for `cifar10` on the state that enters it (0.5, 0.9, 0.5).
        latent_norm: what normalises every latent block, always without parameters. `batch`, as published: BatchNorm,
            which in training makes the samples of a batch depend on each other, so that no solver can settle them one
            by one, and moves its running statistics at every evaluation. `group`: GroupNorm with one group, which keeps
            samples apart; the injection is then normalised too, once, because an image of little contrast would
            otherwise hardly count beside a state of fixed scale. `none`: as published for Jacobian-based training.
        lipschitz_rescale: whether the convolutions of R shrink after every optimizer step in which R, at the
            equilibrium and beside it, contracts by less than `gamma` on average, as in the paper's code. That does not
            make R a contraction, and the paper reports that it was not needed.
        solver: finds z*. None: `FixedPointIteration(max_steps=50)`, the paper's iteration.

    Shapes:
        Images (batch, in_channels, image_size, image_size) to logits (batch, num_classes). State and injection are
        (batch, channels, size, size) with size = image_size / 3 rounded down for `mnist`, image_size / 4 rounded up for
        `svhn`, and image_size / 4 + 2 rounded down for `cifar10`.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Fung et al., "JFB: Jacobian-free backpropagation for implicit networks", AAAI 2022, arXiv:2103.12803.
    """

    def __init__(
        self,
        network: Literal["mnist", "svhn", "cifar10"] = "mnist",
        in_channels: int | None = None,
        image_size: int | None = None,
        num_classes: int = 10,
        channels: int | None = None,
        latent_blocks: int | None = None,
        gamma: float | None = None,
        latent_norm: Literal["batch", "group", "none"] = "group",
        lipschitz_rescale: bool = False,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(solver or FixedPointIteration(max_steps=50))
        one_of(NETWORKS, LEAVE_OUT, network=network)
        one_of(LATENT_NORMS, LEAVE_OUT, latent_norm=latent_norm)
        published, norm = NETWORKS[network], LATENT_NORMS[latent_norm]
        in_channels = usual(published.in_channels, 1, in_channels=in_channels)
        image_size = usual(published.image_size, 3, image_size=image_size)
        channels = usual(published.channels, 4, channels=channels)
        latent_blocks = usual(published.latent_blocks, 1, latent_blocks=latent_blocks)
        whole(1, most=MOST_BLOCKS, latent_blocks=latent_blocks)
        sizes(1, "Leave it out for the usual 10.", num_classes=num_classes)
        self.gamma = published.gamma if gamma is None else gamma
        within("(0, 1)", f"Leave it out for the usual {published.gamma}.", gamma=self.gamma)
        self.gamma_on_state = published.gamma_on_state
        self.lipschitz_rescale = lipschitz_rescale
        self.encoder = published.encoder(in_channels, channels)
        self.injection_norm = norm(channels) if latent_norm == "group" else nn.Identity()
        self.latent = nn.Sequential(*(published.block(channels, norm(channels)) for _ in range(latent_blocks)))
        self.head = published.head(channels, published.latent_size(image_size), num_classes)

    def inject(self, x: Tensor) -> Tensor:
        """Return Q(x), the latent map of the images."""
        return self.injection_norm(self.encoder(x))

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        """Return R(z, u)."""
        if self.gamma_on_state:
            return self.latent(u + self.gamma * z)
        return self.gamma * self.latent(u + z)

    def readout(self, z: Tensor) -> Tensor:
        """Return the logits S(z)."""
        return self.head(z)

    def project(self, equilibria: Sequence[Equilibrium]) -> None:
        """Shrink the convolutions of R where it contracts too little."""
        for f, z, _ in equilibria if self.lipschitz_rescale else ():
            assert isinstance(f, CellMap) and isinstance(z, Tensor)
            expansion = average_over_processes(self.expansion(z, f.u))
            factor = (self.gamma / expansion).clamp_max(1) ** (1 / len(self.latent))
            for parameter in self.latent.parameters():
                parameter.mul_(factor)

    def expansion(self, z: Tensor, u: Tensor) -> Tensor:
        """Return by how much R lengthens a random displacement of the state, on average over samples and pixels.

        Displacement and injection are disturbed by standard normal noise; lengths are over the channels of a pixel.
        """
        noise, disturbed = torch.randn_like(z), u + torch.randn_like(u)
        change = self.cell(z + noise, disturbed) - self.cell(z, disturbed)
        return change.norm(dim=1).mean() / noise.norm(dim=1).mean()


def usual(default: int, minimum: int, **argument: int | None) -> int:
    """Return the value of the one argument, or the default for None; raise a ValueError if it is below the minimum."""
    ((name, value),) = argument.items()
    if value is None:
        return default
    sizes(minimum, f"Leave it out for the usual {default}.", **{name: value})
    return value
