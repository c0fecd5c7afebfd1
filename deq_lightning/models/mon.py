"""Monotone operator equilibrium networks."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import check_at_least
from deq_lightning.models.base import ImplicitModel
from deq_lightning.models.frozen import Freezable
from deq_lightning.solvers import FixedPointIteration, Solver

Splitting = Literal["peaceman_rachford", "forward_backward"]


class MON(ImplicitModel):
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
        alpha: step of the splitting, above 0.
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
        super().__init__(solver or FixedPointIteration(max_steps=300))
        check_at_least(1, in_features=in_features, num_classes=num_classes, width=width)
        if splitting not in get_args(Splitting):
            raise ValueError(f"`splitting` must be one of {', '.join(get_args(Splitting))}; got {splitting!r}.")
        if not alpha > 0:
            raise ValueError(f"`alpha` must be above 0, got {alpha}.")
        self.splitting = splitting
        self.alpha = alpha
        self.lift = nn.Linear(in_features, width)
        self.monotone = MonotoneLinear(width, monotonicity, alpha if splitting == "peaceman_rachford" else None)
        self.head = nn.Linear(width, num_classes)

    def inject(self, x: Tensor) -> Tensor:
        """Return U x + b, (batch, width)."""
        return self.lift(x.flatten(1))

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        """Return the next iterate of the splitting."""
        if self.splitting == "forward_backward":
            return F.relu(torch.lerp(z, self.monotone(z) + u, self.alpha))
        reflected = 2 * F.relu(z) - z
        return 2 * self.monotone.resolvent(reflected + self.alpha * u) - reflected

    def readout(self, z: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(F.relu(z))


class MonotoneLinear(Freezable):
    r"""The product with :math:`W = (1 - m) I - A^\top A + B - B^\top`, for which :math:`I - W \succeq m I`.

    Args:
        width: n, of the n x n matrices A and B.
        monotonicity: m, above 0.
        alpha: step of the resolvent :math:`V = (I + \alpha (I - W))^{-1}`. None: it is not needed.

    Shapes:
        (batch, n) to the same.

    Raises:
        ValueError: if `monotonicity` is not above 0.
    """

    def __init__(self, width: int, monotonicity: float, alpha: float | None) -> None:
        super().__init__()
        if not monotonicity > 0:
            raise ValueError(f"`monotonicity` must be above 0, got {monotonicity}.")
        self.monotonicity = monotonicity
        self.alpha = alpha
        self.a = nn.Linear(width, width, bias=False)
        self.b = nn.Linear(width, width, bias=False)
        self.frozen: tuple[Tensor, Tensor | None] | None = None

    def freeze(self) -> None:
        """Compute W, and V where it is needed, with their graphs where gradients are on."""
        self.frozen = self._matrices()

    def matrix(self) -> Tensor:
        """Return W."""
        a, b = self.a.weight, self.b.weight
        eye = torch.eye(len(a), dtype=a.dtype, device=a.device)
        return (1 - self.monotonicity) * eye - a.T @ a + b - b.T

    def _matrices(self) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(self.a.weight.device.type, enabled=False):  # an inverse in half precision is none
            w = self.matrix()
            if self.alpha is None:
                return w, None
            eye = torch.eye(len(w), dtype=w.dtype, device=w.device)
            return w, torch.linalg.inv_ex((1 + self.alpha) * eye - self.alpha * w).inverse

    def forward(self, z: Tensor) -> Tensor:
        """Return W z."""
        return F.linear(z, (self.frozen or self._matrices())[0])

    def resolvent(self, z: Tensor) -> Tensor:
        """Return V z."""
        inverse = (self.frozen or self._matrices())[1]
        assert inverse is not None
        return F.linear(z, inverse)
