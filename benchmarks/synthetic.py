"""Problems whose exact gradient is known, by dense solves in float64.

`Layer` is the setting of Geng et al. 2021, Appendix D.1: h = F(h + u), one layer with a symmetric weight.

The paper does not name the layer's nonlinearity, and it decides how ill-conditioned the problem is: tanh saturates, so
the Jacobian's radius stays well below the Lipschitz constant, which a linear layer attains exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from maps import Map
from torch import Tensor

from deq_lightning import Broyden

PAIRS, DIM = 32, 128
ACTIVATIONS = ("tanh", "linear")


def symmetric_weight(lipschitz: float, dim: int = DIM, seed: int = 0) -> Tensor:
    """Return a random symmetric matrix of the given spectral norm."""
    square = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    symmetric = square + square.T
    return (lipschitz / torch.linalg.matrix_norm(symmetric, 2) * symmetric).float()


@dataclass(frozen=True)
class Layer:
    """h ↦ F(h + u) with its data pairs (u, y); dimension 0 counts the pairs.

    Args:
        weight: (dim, dim), symmetric.
        activation: of `ACTIVATIONS`.
        u: (pairs, dim) the injection, a leaf.
        y: (pairs, dim) the target of the mean squared error.
    """

    weight: Tensor
    activation: str
    u: Tensor
    y: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        """Evaluate the map."""
        pre = (h + self.u) @ self.weight
        return torch.tanh(pre) if self.activation == "tanh" else pre

    @property
    def start(self) -> Tensor:
        """Where solves start."""
        return torch.zeros_like(self.y)

    def loss(self, h: Tensor) -> Tensor:
        """Return the mean squared error."""
        return torch.nn.functional.mse_loss(h, self.y)

    def jacobians(self, h: Tensor) -> Tensor:
        """Return the (pairs, dim, dim) Jacobians at h, dense and in float64: the reference, never used by a solver."""
        slope = 1 - self(h).double() ** 2 if self.activation == "tanh" else torch.ones_like(h, dtype=torch.float64)
        return slope.detach()[:, :, None] * self.weight.double().T


def draw(weight: Tensor, activation: str, seed: int, std: float = 1.0) -> Layer:
    """Draw the pairs of one batch: u normal with the given standard deviation, y standard normal."""
    generator = torch.Generator().manual_seed(seed)
    u, y = (torch.randn(PAIRS, len(weight), generator=generator) for _ in range(2))
    return Layer(weight, activation, (std * u).requires_grad_(), y)


def dense_tanh(radius: float, injection: float, dim: int = 64, batch: int = 16) -> Map:
    """Return tanh(W z + U x + b) in the default dtype: W of the given spectral radius, U x of the given deviation."""
    generator = torch.Generator().manual_seed(0)
    sizes, dtype = (dim, dim, batch), torch.get_default_dtype()
    # Drawn in float32 whatever the dtype is: float64 would draw other values.
    draws = (torch.randn(size, dim, generator=generator, dtype=torch.float32) for size in sizes)
    weight, mixing, x = (one.to(dtype) for one in draws)
    weight = (radius * weight / torch.linalg.eigvals(weight).abs().max()).requires_grad_()
    mixing = (injection * mixing / dim**0.5).requires_grad_()
    bias = torch.zeros(dim, requires_grad=True)
    return Map(
        lambda z: torch.tanh(z @ weight.T + x @ mixing.T + bias), torch.zeros(batch, dim), [weight, mixing, bias]
    )


def in_double(make: Callable[[float], Map], scale: float) -> Map:
    """Return the map in float64, with the very values of the one in float32."""
    single = make(scale)
    torch.set_default_dtype(torch.float64)
    double = make(scale)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter, value in zip(double.parameters, single.parameters, strict=True):
            parameter.copy_(value)
    return double


def solved(double: Map) -> Tensor:
    """Return the exact fixed point."""
    z = Broyden(500, rtol=1e-13, history=60).solve(double.f, double.z0).z
    assert isinstance(z, Tensor)
    return z


def jacobians(double: Map, z: Tensor) -> Tensor:
    """Return the dense (batch, dim, dim) Jacobians at z."""
    leaf = z.clone().requires_grad_()
    fz = double.f(leaf).flatten(1)
    rows = [torch.autograd.grad(fz[:, i].sum(), leaf, retain_graph=True)[0].flatten(1) for i in range(fz.shape[1])]
    return torch.stack(rows, dim=1)


def radius(make: Callable[[float], Map], scale: float) -> float:
    """Return the Jacobian's spectral radius at the fixed point, the largest of the samples."""
    double = in_double(make, scale)
    return torch.linalg.eigvals(jacobians(double, solved(double))).abs().max().item()


def scale_for(make: Callable[[float], Map], wanted: float, low: float, high: float) -> float:
    """Find the scale between low and high that gives the radius wanted, by bisection."""
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if radius(make, middle) < wanted else (low, middle)
    return low
