"""Monotone operator equilibrium networks."""

from collections.abc import Sequence

from torch import Tensor, nn

from deq_lightning.configured import several_sizes, sizes
from deq_lightning.models.monotone.operators import MonotoneConvolution, MonotoneLinear, Tiers
from deq_lightning.models.monotone.splitting import MonotoneModel, Splitting, interior_relu
from deq_lightning.solvers import Solver


class MON(MonotoneModel):
    r"""Fully connected monotone operator equilibrium network: z = ReLU(W z + U x + b), which always has one solution.

    :math:`W = (1 - m) I - A^\top A + B - B^\top` keeps :math:`I - W` strongly monotone for all A and B. The cell is
    a step of an operator splitting, so that ordinary solvers iterate it and ordinary strategies differentiate it; both
    splittings have the solution's gradient. The defaults are the network for MNIST (84,313 parameters).

    Args:
        in_features: values of an input, flattened.
        num_classes: classes to predict.
        width: dimension of z, 1 or more.
        monotonicity: m, above 0; what every published run used is 1.
        splitting: `peaceman_rachford` converges for every `alpha`, for one n x n inverse per forward pass;
            `forward_backward` needs no inverse, but `alpha` below 2 m / ‖I − W‖².
        alpha: step of the splitting, above 0. A checkpoint brings its own.
        solver: finds the equilibrium. None: `FixedPointIteration(max_steps=300)`, as published, to a relative
            tolerance of 1e-3 instead of 1e-2.

    Shapes:
        Inputs (batch, ...) to logits (batch, num_classes). The state is (batch, width): z itself for
        `forward_backward`, and what ReLU makes z of for `peaceman_rachford`.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Winston and Kolter, "Monotone operator equilibrium networks", NeurIPS 2020, arXiv:2006.08591.
    """

    def __init__(
        self,
        in_features: int = 784,
        num_classes: int = 10,
        width: int = 87,
        monotonicity: float = 1.0,
        splitting: Splitting = "peaceman_rachford",
        alpha: float = 1.0,
        solver: Solver | None = None,
    ) -> None:
        sizes(in_features=in_features, num_classes=num_classes, width=width)
        super().__init__(
            nn.Sequential(nn.Flatten(), nn.Linear(in_features, width)),
            MonotoneLinear(width, monotonicity),
            nn.Linear(width, num_classes),
            splitting,
            alpha,
            solver,
        )


class MONConv(MonotoneModel):
    r"""Convolutional monotone operator equilibrium network, of one resolution.

    :math:`W = (1 - m) I - g A^\top A + h (B - B^\top)` with circular 3x3 convolutions A and B of Frobenius norm 1,
    which the Fourier transform diagonalises. z is one pixel larger than the image on every side, and zero there, so
    that nothing gets around. Here √g is learnt, and g cannot be negative; the published code learns g itself, and is
    not monotone where it becomes negative.

    The defaults are the network for MNIST as it was run (79,500 parameters; the paper's label is 84K, and 56 channels
    have 84,460). The other published sizes, with `in_channels` 3 and `image_size` 32:

    - SVHN and CIFAR-10 ("172K"): `channels` 81 (172,218).
    - CIFAR-10 large ("854K"): `channels` 200 (853,612).

    Args:
        in_channels: channels of the images.
        image_size: their height and width, 2 or more.
        num_classes: classes to predict.
        channels: channels of z.
        monotonicity: m, above 0; what every published run used is 1.
        splitting: `peaceman_rachford` converges for every `alpha`, for one inverse of a complex matrix of `channels`
            rows per frequency and forward pass; `forward_backward` needs none, but `alpha` below 2 m / ‖I − W‖².
        alpha: step of the splitting, above 0. A checkpoint brings its own.
        solver: finds the equilibrium. None: `FixedPointIteration(max_steps=300)`, as published, to a relative
            tolerance of 1e-3 instead of 1e-2.

    Shapes:
        Images (batch, in_channels, image_size, image_size) to logits (batch, num_classes). The state is (batch,
        channels, image_size + 2, image_size + 2).

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Winston and Kolter, "Monotone operator equilibrium networks", NeurIPS 2020, arXiv:2006.08591, section 4.
    """

    prox = staticmethod(interior_relu)

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        channels: int = 54,
        monotonicity: float = 1.0,
        splitting: Splitting = "peaceman_rachford",
        alpha: float = 1.0,
        solver: Solver | None = None,
    ) -> None:
        sizes(in_channels=in_channels, num_classes=num_classes, channels=channels)
        sizes(2, image_size=image_size)
        side = image_size + 2
        features = channels * (side // 4) ** 2
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=2),
            MonotoneConvolution([channels], [side], monotonicity),
            nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(features, num_classes)),
            splitting,
            alpha,
            solver,
        )


class MONMultiTier(MonotoneModel):
    r"""Convolutional monotone operator equilibrium network, with several resolutions; each feeds the next.

    W is block lower bidiagonal; every tier is as in `MONConv`, with scales of its own, and a stride-2 convolution leads
    to the next. The published code learns the scales g, and returns NaN where one becomes negative; here √g is learnt.

    The defaults are the network for MNIST (81,394 parameters). The other published sizes, with `in_channels` 3 and
    `image_size` 32:

    - SVHN and CIFAR-10 ("170K"): `channels` 16, 32, 60 (170,194).
    - CIFAR-10 large ("1M"): `channels` 64, 128, 128 (1,014,546).

    Args:
        in_channels: channels of the images.
        image_size: their height and width, which can be halved once for every tier but the first.
        num_classes: classes to predict.
        channels: channels of each tier, finest first.
        monotonicity: m, above 0; what every published run used is 1.
        splitting: `peaceman_rachford` converges for every `alpha`, for inverses per frequency and forward pass;
            `forward_backward` needs none, but `alpha` below 2 m / ‖I − W‖².
        alpha: step of the splitting, above 0. A checkpoint brings its own.
        solver: finds the equilibrium. None: `FixedPointIteration(max_steps=300)`, as published, to a relative
            tolerance of 1e-3 instead of 1e-2.

    Shapes:
        Images (batch, in_channels, image_size, image_size) to logits (batch, num_classes). The state is a tuple of
        (batch, channels[i], n, n) with n = image_size / 2^i + 2.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Winston and Kolter, "Monotone operator equilibrium networks", NeurIPS 2020, arXiv:2006.08591, section 4.
    """

    prox = staticmethod(interior_relu)

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        channels: Sequence[int] = (16, 32, 32),
        monotonicity: float = 1.0,
        splitting: Splitting = "peaceman_rachford",
        alpha: float = 1.0,
        solver: Solver | None = None,
    ) -> None:
        several_sizes(channels=channels)
        sizes(in_channels=in_channels, num_classes=num_classes, image_size=image_size)
        halvings = len(channels) - 1
        if image_size % 2**halvings:
            raise ValueError(
                f"`image_size` must be a multiple of {2**halvings} for {len(channels)} tiers, got {image_size}. "
                "Resize the images, or leave out a tier."
            )
        sides = [image_size // 2**i + 2 for i in range(len(channels))]
        super().__init__(
            nn.Conv2d(in_channels, channels[0], 3, padding=2),
            MonotoneConvolution(channels, sides, monotonicity),
            nn.Sequential(nn.Flatten(), nn.Linear(channels[-1] * sides[-1] ** 2, num_classes)),
            splitting,
            alpha,
            solver,
        )
        self.channels = tuple(channels)
        self.sizes = tuple(sides)

    def initial_state(self, u: Tensor) -> Tiers:
        """Return zeros for every tier."""
        return tuple(self.zeros((u.shape[0], c, n, n)) for c, n in zip(self.channels, self.sizes, strict=True))
