"""The zoo: small float64 maps whose fixed points, Jacobians and gradients are known without the package.

Fixed points come from Newton's method with dense Jacobians (or one linear solve), gradients from a dense solve.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.state import State, pack, unpack

BATCH = 3


@dataclass
class Problem:
    """A cell f(z) = cell(z, u) whose parameters and injection require gradients, and where to start."""

    cell: nn.Module
    u: Tensor
    z0: State

    def f(self, z: State) -> State:
        return self.cell(z, self.u)

    @property
    def inputs(self) -> list[Tensor]:
        return [*self.cell.parameters(), self.u]

    def only(self, samples: slice | list[int]) -> "Problem":
        """Return the same problem for some of the samples."""
        z0 = self.z0[samples] if isinstance(self.z0, Tensor) else tuple(part[samples] for part in self.z0)
        return Problem(self.cell, self.u[samples].detach().requires_grad_(), z0)


class LinearCell(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return z @ self.weight.T + u


class TanhCell(LinearCell):
    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(super().forward(z, u))


class ConvCell(nn.Module):
    """Two 3x3 convolutions with group normalisation, as in MDEQ's residual block; smooth, so that differences exist."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm1 = nn.GroupNorm(2, 4)
        self.norm2 = nn.GroupNorm(2, 4)
        nn.init.normal_(self.conv2.weight, std=0.3)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return self.norm2(u + self.conv2(F.softplus(self.norm1(z + self.conv1(z)))))


class PyramidCell(nn.Module):
    """Two resolutions that feed each other; the state is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(2, 2, 3, padding=1)
        self.coarse = nn.Conv2d(2, 2, 3, padding=1)
        self.down = nn.Conv2d(2, 2, 3, stride=2, padding=1)
        self.up = nn.Conv2d(2, 2, 1)
        self.norm = nn.GroupNorm(1, 2)

    def forward(self, z: tuple[Tensor, Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
        a, b = z
        fine = self.norm(u + self.fine(torch.tanh(a)) + F.interpolate(self.up(b), scale_factor=2.0))
        return fine, torch.tanh(self.down(a) + self.coarse(b))


def matrix(dim: int, radius: float, seed: int = 0) -> Tensor:
    """Return a non-symmetric matrix of the given spectral radius."""
    weight = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return weight * (radius / torch.linalg.eigvals(weight).abs().max())


def rotations(dim: int, radius: float) -> Tensor:
    """Return a block-diagonal matrix of rotations: every eigenvalue complex, with modulus `radius`."""
    angles = torch.linspace(1.2, 2.4, dim // 2, dtype=torch.float64)
    blocks = [torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])]) for a in angles]
    return radius * torch.block_diag(*blocks)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(radius: float = 0.8, dim: int = 6, batch: int = BATCH) -> Problem:
    return Problem(LinearCell(matrix(dim, radius)), random(batch, dim).requires_grad_(), random(batch, dim, seed=2))


def tanh(radius: float = 0.9, dim: int = 8, batch: int = BATCH) -> Problem:
    return Problem(TanhCell(matrix(dim, radius)), random(batch, dim).requires_grad_(), random(batch, dim, seed=2))


def rotation(radius: float = 1.2, dim: int = 6, batch: int = BATCH) -> Problem:
    """Non-contractive: plain iteration diverges, 1 is no eigenvalue, so the fixed point exists all the same."""
    return Problem(LinearCell(rotations(dim, radius)), random(batch, dim).requires_grad_(), random(batch, dim, seed=2))


def conv(batch: int = BATCH) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cell = ConvCell().double()
    return Problem(cell, random(batch, 4, 3, 3).requires_grad_(), torch.zeros(batch, 4, 3, 3, dtype=torch.float64))


def pyramid(batch: int = BATCH) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cell = PyramidCell().double()
    z0 = (torch.zeros(batch, 2, 4, 4, dtype=torch.float64), torch.zeros(batch, 2, 2, 2, dtype=torch.float64))
    return Problem(cell, random(batch, 2, 4, 4).requires_grad_(), z0)


CONTRACTIVE = {"linear": linear, "tanh": tanh, "conv": conv, "pyramid": pyramid}
AFFINE = {"linear": linear, "rotation": rotation}


def dense_jacobian(f: Callable[[State], State], z: State) -> Tensor:
    """Return the (batch, dim, dim) Jacobians of the samples."""
    with torch.enable_grad():
        flat = pack(z).detach().requires_grad_()
        fz = pack(f(unpack(flat, z)))
        columns = range(fz.shape[1])
        rows = [torch.autograd.grad(fz[:, i].sum(), flat, retain_graph=True, materialize_grads=True) for i in columns]
    return torch.stack([row for (row,) in rows], dim=1)


def newton(f: Callable[[State], State], z0: State, steps: int = 15) -> State:
    """Return the fixed point to working precision."""
    z = z0
    for _ in range(steps):
        with torch.no_grad():
            gap = pack(f(z)) - pack(z)
        if gap.norm() < 1e-14 * pack(z).norm():
            break
        eye = torch.eye(gap.shape[1], dtype=gap.dtype)
        z = unpack(pack(z) + torch.linalg.solve(eye - dense_jacobian(f, z), gap), z0)
    return z


def gradients_of(problem: Problem, output: State, g: Tensor) -> Tensor:
    """Return the gradients of <g, output> in all parameters and the injection, as one vector."""
    grads = torch.autograd.grad(pack(output), problem.inputs, g)
    return torch.cat([grad.flatten() for grad in grads])


def dense_gradient(problem: Problem, z: State, g: Tensor, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """Return wᵀ ∂f/∂(parameters, injection) at `z` with w = inverse(Jᵀ) g."""
    w = torch.einsum("bij,bj->bi", inverse(dense_jacobian(problem.f, z).transpose(1, 2)), g)
    return gradients_of(problem, problem.f(z), w)


def dense_implicit_gradient(problem: Problem, z: State, g: Tensor) -> Tensor:
    """Return the exact gradient of <g, z*> by the implicit function theorem."""
    return dense_gradient(problem, z, g, lambda jt: torch.linalg.inv(torch.eye(jt.shape[1], dtype=jt.dtype) - jt))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


class Recorder:
    """A map that remembers its evaluations; `spoil` turns samples into NaN from an evaluation on."""

    def __init__(self, f: Callable[[State], State], spoil: list[int] | None = None, after: int = 0) -> None:
        self.f = f
        self.spoil = spoil
        self.after = after
        self.points: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, z: State) -> State:
        self.points.append(pack(z).detach().clone())
        fz = self.f(z)
        if self.spoil is not None and self.calls > self.after:
            fz = fz.clone()
            fz[self.spoil] = torch.nan
        self.values.append(pack(fz).detach().clone())
        return fz

    @property
    def calls(self) -> int:
        return len(self.points)

    @property
    def residuals(self) -> Tensor:
        """(evaluations, batch) relative residuals."""
        points, values = torch.stack(self.points), torch.stack(self.values)
        return (values - points).norm(dim=2) / values.norm(dim=2)
