"""How far a cheap gradient is from the exact one."""

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deq_lightning.estimators.modes import differentiable
from deq_lightning.gradients import GradientStrategy, Implicit
from deq_lightning.solvers import GMRES, Anderson, FixedPointMap, Solver
from deq_lightning.state import State, pack, parts, unpack


class Audit(NamedTuple):
    """A strategy's gradient beside the exact one.

    Args:
        cosine: cosine of the angle between them, a scalar like the others.
        norm_ratio: length of the strategy's gradient in units of the exact one's.
        residual: largest relative residual of the two solves behind the exact one, which is only as exact as they are.
    """

    cosine: Tensor
    norm_ratio: Tensor
    residual: Tensor


def gradient_audit(
    strategy: GradientStrategy,
    f: FixedPointMap,
    z: State,
    g: State,
    parameters: Iterable[nn.Parameter],
    solver: Solver | None = None,
    adjoint_solver: Solver | None = None,
) -> Audit:
    """Compare the gradient that a strategy gives with the implicit gradient of converged solves.

    Only the gradient that passes through the equilibrium is compared: the readout's own does not depend on the strategy
    and would hide the difference.

    Args:
        strategy: the strategy to examine; it is not changed.
        f: the map.
        z: its fixed point as the model's solver found it.
        g: the incoming gradient, of the structure of `z`.
        parameters: parameters to differentiate by; those that do not reach `f` do not count.
        solver: continues from `z` to the exact fixed point. None: `Anderson(max_steps=100, rtol=1e-6)`.
        adjoint_solver: solves the adjoint system. None: `GMRES(max_steps=100, rtol=1e-6, history=30)`.

    Returns:
        The comparison. NaN where a gradient vanishes or is not finite.
    """
    solver = solver or Anderson(max_steps=100, rtol=1e-6)
    exact = Implicit(adjoint_solver=adjoint_solver or GMRES(max_steps=100, rtol=1e-6, history=30))
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    solution = solver.solve(f, z)
    with differentiable():
        cheap_gradient = _gradient(copy.deepcopy(strategy), f, z, g, wanted)
        exact_gradient = _gradient(exact, f, solution.z, g, wanted)
    norms = cheap_gradient.norm(), exact_gradient.norm()
    residuals = torch.cat([solution.residual, *(report.residual for report in exact.adjoint_solutions)])
    return Audit(
        cosine=cheap_gradient @ exact_gradient / (norms[0] * norms[1]),
        norm_ratio=norms[0] / norms[1],
        residual=residuals.max(),
    )


def _gradient(
    strategy: GradientStrategy, f: FixedPointMap, z: State, g: State, parameters: list[nn.Parameter]
) -> Tensor:
    """Return <g, ∂z/∂parameters> as one vector in float64."""
    start = unpack(pack(z).detach(), z)
    attached = parts(strategy.attach(f, start))
    incoming = [part.detach().to(output.dtype) for part, output in zip(parts(g), attached, strict=True)]
    gradients = torch.autograd.grad(attached, parameters, incoming, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten().cpu().double() for gradient in gradients])
