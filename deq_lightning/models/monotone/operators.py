"""Linear operators W for which I − W is strongly monotone whatever their parameters are, and their resolvents."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import above
from deq_lightning.models.monotone.circulant import (
    adjoint,
    circular,
    circular_transposed,
    decimated,
    filtered,
    transfer,
)
from deq_lightning.precision import full_precision

Tiers = tuple[Tensor, ...]


class MonotoneMap(Protocol):
    """W at the present parameters, with whatever is computed once per solve."""

    def product(self, z: Tiers) -> Tiers:
        """Return W z."""

    def resolvent(self, z: Tiers) -> Tiers:
        """Return V z, where it was prepared."""


class MonotoneOperator(nn.Module, ABC):
    """The parameters of W.

    Args:
        monotonicity: m, the least eigenvalue that the symmetric part of I − W can have; above 0.

    Raises:
        ValueError: if `monotonicity` is not above 0.
    """

    def __init__(self, monotonicity: float) -> None:
        super().__init__()
        above(0, monotonicity=monotonicity)
        self.monotonicity = monotonicity

    @abstractmethod
    def prepare(self, alpha: Tensor | None) -> MonotoneMap:
        r"""Return W, with its graph where gradients are on.

        Args:
            alpha: step of the resolvent :math:`V = (I + \alpha (I - W))^{-1}`. None: it is not needed.
        """


class MonotoneLinear(MonotoneOperator):
    r"""Dense: :math:`W = (1 - m) I - A^\top A + B - B^\top`. The state is one tier, (batch, width).

    Args:
        width: n, of the n x n matrices A and B.
        monotonicity: m, above 0.
    """

    def __init__(self, width: int, monotonicity: float) -> None:
        super().__init__(monotonicity)
        self.a = nn.Linear(width, width, bias=False)
        self.b = nn.Linear(width, width, bias=False)

    def matrix(self) -> Tensor:
        """Return W."""
        a, b = self.a.weight, self.b.weight
        return (1 - self.monotonicity) * _eye(a) - a.T @ a + b - b.T

    def prepare(self, alpha: Tensor | None) -> "DenseMap":
        """Return W, and its resolvent's matrix."""
        w = self.matrix()
        return DenseMap(w, None if alpha is None else _inverse((1 + alpha) * _eye(w) - alpha * w))


class DenseMap(NamedTuple):
    """The matrices W and V."""

    w: Tensor
    inverse: Tensor | None

    def product(self, z: Tiers) -> Tiers:
        """Return W z."""
        return (F.linear(z[0], self.w),)

    def resolvent(self, z: Tiers) -> Tiers:
        """Return V z."""
        assert self.inverse is not None
        return (F.linear(z[0], self.inverse),)


class MonotoneConvolution(MonotoneOperator):
    r"""Circular 3x3 convolutions on maps of one or several resolutions; each feeds the next.

    :math:`W = (1 - m) I - A^\top A + B - B^\top` of the whole state, where A maps every tier to itself and, with stride
    2, to the next one, and the skew part makes what would lead back to a finer tier vanish. So W is block lower
    bidiagonal, and V is a forward substitution.

    Args:
        channels: of each tier, finest first.
        sizes: height and width of each tier's map, 3 or more; n, then n / 2 + 1, and so on, so that all but the last
            are even. A map of n / 2 pixels fills the next one but for its last row and column.
        monotonicity: m, above 0.

    Shapes:
        Tiers (batch, channels[i], sizes[i], sizes[i]) to the same.
    """

    def __init__(self, channels: Sequence[int], sizes: Sequence[int], monotonicity: float) -> None:
        super().__init__(monotonicity)
        following = (*channels[1:], None)
        self.tiers = nn.ModuleList(
            Tier(width, size, below) for width, size, below in zip(channels, sizes, following, strict=True)
        )

    def prepare(self, alpha: Tensor | None) -> "TieredMap":
        """Return the normalised kernels, and what the resolvent needs of them at every frequency."""
        return TieredMap(tuple(tier.prepare(self.monotonicity, alpha) for tier in self.tiers))  # type: ignore[operator]


class Tier(nn.Module):
    r"""The parameters of one tier: :math:`A = \sqrt g A_0 / \|A_0\|_F`, :math:`B = h B_0 / \|B_0\|_F`.

    Learnt are h and √g, from 1, so that g cannot be negative.

    Args:
        channels: of the tier.
        size: height and width of its map.
        following: channels of the next tier. None: this is the last.
    """

    def __init__(self, channels: int, size: int, following: int | None) -> None:
        super().__init__()
        self.size = size
        self.a = nn.Conv2d(channels, channels, 3, bias=False)
        self.b = nn.Conv2d(channels, channels, 3, bias=False)
        self.root_g = nn.Parameter(torch.ones(()))
        self.h = nn.Parameter(torch.ones(()))
        self.down: nn.Conv2d | None = None
        if following is not None:
            self.down = nn.Conv2d(channels, following, 3, bias=False)
            self.down_root_g = nn.Parameter(torch.ones(()))

    def prepare(self, monotonicity: float, alpha: Tensor | None) -> "TierMap":
        """Return the tier's part of W and V."""
        a, b = self.root_g * _unit(self.a.weight), self.h * _unit(self.b.weight)
        down = None if self.down is None else self.down_root_g * _unit(self.down.weight)
        tier = TierMap(monotonicity, a, b - adjoint(b), down)
        return tier if alpha is None else tier.with_resolvent(alpha, self.size)


class TierMap(NamedTuple):
    r"""One diagonal block of W, and what leads to the next tier.

    Without `down` the block is :math:`(1 - m) I - A^\top A + B - B^\top`, which the Fourier transform makes block
    diagonal. With it, :math:`- U^\top U` is added, where U is the stride-2 convolution, which couples frequencies. The
    resolvent then follows from :math:`D = I + \alpha (I - W - U^\top U)`, without that term, by the Woodbury identity:

    .. math:: (D + \alpha U^\top U)^{-1} = D^{-1} (I - \alpha U^\top H U D^{-1}), \quad H = (I + \alpha U D^{-1}
        U^\top)^{-1},

    and H is block diagonal too, on the map of half the size.

    Args:
        monotonicity: m.
        a: kernel of A.
        skew: kernel of B − Bᵀ.
        down: kernel of U.
        alpha: step of the resolvent.
        inverse: the blocks of D⁻¹.
        capacitance: those of H.
    """

    monotonicity: float
    a: Tensor
    skew: Tensor
    down: Tensor | None
    alpha: Tensor | None = None
    inverse: Tensor | None = None
    capacitance: Tensor | None = None

    def with_resolvent(self, alpha: Tensor, size: int) -> "TierMap":
        """Return the same with the blocks that the resolvent needs, for maps of height and width `size`."""
        a = transfer(self.a, size)
        blocks = (1 + alpha * self.monotonicity) * _eye(a) + alpha * (a.mH @ a - transfer(self.skew, size))
        inverse = _inverse(blocks)
        if self.down is None:
            return self._replace(alpha=alpha, inverse=inverse)
        u = transfer(self.down, size)
        coupling = decimated(u @ inverse @ u.mH, size)
        return self._replace(alpha=alpha, inverse=inverse, capacitance=_inverse(_eye(coupling) + alpha * coupling))

    def product(self, z: Tensor, arriving: Tensor | None) -> Tensor:
        """Return the tier's rows of W z, `arriving` being what the tier before sends on."""
        response = circular(z, self.a)
        response = response if arriving is None else response + 2 * arriving
        product = (1 - self.monotonicity) * z - circular(response, adjoint(self.a)) + circular(z, self.skew)
        if self.down is None:
            return product
        return product - circular_transposed(circular(z, self.down, stride=2), self.down)

    def send(self, z: Tensor) -> Tensor | None:
        """Return what arrives at the next tier."""
        return None if self.down is None else F.pad(circular(z, self.down, stride=2), (0, 1, 0, 1))

    def resolvent(self, z: Tensor, arriving: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the tier's rows of V z, and what arrives at the next tier."""
        assert self.alpha is not None and self.inverse is not None
        if arriving is not None:
            z = z - 2 * self.alpha * circular(arriving, adjoint(self.a))
        if self.down is None or self.capacitance is None:
            return filtered(z, self.inverse), None
        # U V = H U D⁻¹: what the correction needs is also what goes on.
        sent = filtered(circular(filtered(z, self.inverse), self.down, stride=2), self.capacitance)
        corrected = z - self.alpha * circular_transposed(sent, self.down)
        return filtered(corrected, self.inverse), F.pad(sent, (0, 1, 0, 1))


class TieredMap(NamedTuple):
    """All tiers, each with what it receives from the one before."""

    tiers: tuple[TierMap, ...]

    def product(self, z: Tiers) -> Tiers:
        """Return W z."""
        arriving, products = None, []
        for tier, part in zip(self.tiers, z, strict=True):
            products.append(tier.product(part, arriving))
            arriving = tier.send(part)
        return tuple(products)

    def resolvent(self, z: Tiers) -> Tiers:
        """Return V z; never in half precision, which has no Fourier transform."""
        arriving, solved = None, []
        with full_precision(z[0].device.type):
            for tier, part in zip(self.tiers, z, strict=True):
                rows, arriving = tier.resolvent(part, arriving)
                solved.append(rows)
        return tuple(solved)


def _unit(weight: Tensor) -> Tensor:
    """Return the kernel at Frobenius norm 1; one of zeros stays what it is."""
    return F.normalize(weight.flatten(), dim=0).view_as(weight)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _inverse(matrices: Tensor) -> Tensor:
    """Invert without asking the device whether it went well: what is inverted here has a symmetric part above I."""
    return torch.linalg.inv_ex(matrices).inverse
