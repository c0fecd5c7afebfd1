"""Equilibria of steps with a learned regulariser."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from deq_lightning import (
    Anderson,
    Blur,
    DEGradient,
    DEProx,
    Downsampling,
    FixedPointIteration,
    Implicit,
    Mask,
    Unrolled,
)
from deq_lightning.models.inverse.unrolled_prior import LearnedRegulariser
from deq_lightning.models.layers.projections import clamp_convolution_, convolution_norm

BOTH = pytest.mark.parametrize("kind", [DEGradient, DEProx])


def made(kind: type[LearnedRegulariser], operator: object = None, rtol: float = 1e-13, **options) -> LearnedRegulariser:
    torch.manual_seed(0)
    solver = Anderson(max_steps=300, rtol=rtol, history=20)
    return kind(operator=operator, width=4, depth=3, weight=0.5, solver=solver, **options).double()


def observed(operator: object = None, samples: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (operator or Blur())(torch.rand(samples, 1, 6, 6, dtype=torch.float64, generator=generator))


@BOTH
@pytest.mark.parametrize("operator", [Blur(0.7), Mask(), Downsampling(2)], ids=repr)
def test_the_fixed_point_satisfies_the_equation_of_the_paper(kind: type[LearnedRegulariser], operator: object) -> None:
    net, y = made(kind, operator).eval(), observed(operator)
    with torch.no_grad():
        z, slope = net(y)[0], lambda z: operator.adjoint(operator(z) - y)
        if kind is DEGradient:
            torch.testing.assert_close(slope(z), -net.weight * (z + net.prior(z)), rtol=0, atol=1e-10)
        else:
            v = z - net.eta * slope(z)
            torch.testing.assert_close(z, (v + net.weight * net.prior(v)) / (1 + net.weight), rtol=0, atol=1e-10)
    assert z.std() > 0.01


@BOTH
def test_the_implicit_gradient_is_the_finite_difference(kind: type[LearnedRegulariser]) -> None:
    net, y = made(kind), observed()
    net.gradient = Implicit(adjoint_solver=Anderson(max_steps=300, rtol=1e-13, history=20))
    weights = dict(net.named_parameters())
    directions = {name: torch.randn_like(value) for name, value in weights.items()}
    net(y)[0].square().sum().backward()
    along = sum((value.grad * directions[name]).sum() for name, value in weights.items())

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            there = {name: value + by * directions[name] for name, value in weights.items()}
            return functional_call(net, there, y)[0].square().sum()

    torch.testing.assert_close(along, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6, atol=0)


@BOTH
@pytest.mark.parametrize("eta", [-20.0, 20.0])
def test_every_pair_of_states_comes_nearer_at_any_step_length(kind: type[LearnedRegulariser], eta: float) -> None:
    """As fast as is stated, for an η near 0 and near its bound."""
    net, u = made(kind, kappa=0.9), observed(samples=8)
    net.step.data.fill_(eta)
    a, b = torch.randn(2, 8, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        factor = (net.cell(a, u) - net.cell(b, u)).flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
        weight, kappa = net.weight, 0.9
        stated = 1 - net.eta * weight * (1 - kappa) if kind is DEGradient else (1 + weight * kappa) / (1 + weight)
    assert 0 < net.eta < 2 and (factor <= stated + 1e-12).all()


@pytest.mark.parametrize(("kind", "contraction"), [(DEGradient, False), (DEProx, True)])
def test_it_converges_at_the_start_and_after_twenty_steps(kind: type[LearnedRegulariser], contraction: bool) -> None:
    net, y, x = (
        made(kind, contraction=contraction, rtol=1e-4).float(),
        observed(samples=4).float(),
        observed(samples=4),
    )
    assert net(y)[1][0].solution.residual.max() <= 1e-4
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = (net(y)[0] - x).square().mean()
        loss.backward()
        optimizer.step()
        net.project([])
    solution = net.eval()(y)[1][0].solution
    assert solution.residual.max() <= 1e-4 and loss.isfinite()
    norms = [convolution_norm(layer.weight) for layer in net.prior if hasattr(layer, "weight")]
    assert (torch.stack(norms).prod() <= net.prior.bound**3 * (1 + 1e-5)) == contraction


def test_the_unrolled_network_is_the_iteration_from_the_adjoint() -> None:
    net, y = made(DEGradient), observed()
    net.gradient, net.solver = Unrolled(unroll_steps=3), FixedPointIteration()
    z = u = Blur().adjoint(y)
    for _ in range(3):
        z = net.cell(z, u)
    assert torch.equal(net(y)[0], z)


def test_the_norm_of_a_convolution_is_bounded_closely() -> None:
    torch.manual_seed(0)
    for ends in ((1, 6), (6, 1), (5, 4), (8, 8)):
        weight = torch.randn(*ends, 3, 3, dtype=torch.float64)
        spectrum = torch.fft.fft2(weight, s=(64, 64)).movedim((2, 3), (0, 1))
        exact = torch.linalg.matrix_norm(spectrum, ord=2).max()
        assert exact <= convolution_norm(weight) <= 1.15 * exact
        clamp_convolution_(weight, 0.5)
        torch.testing.assert_close(convolution_norm(weight), torch.tensor(0.5, dtype=torch.float64))
        before = weight.clone()
        clamp_convolution_(weight, 0.6)
        assert torch.equal(weight, before)
