"""MON: monotone by construction, both splittings solve and differentiate the same equation."""

import pytest
import torch
from problems import newton, relative_error

from deq_lightning import GMRES, MON, NPG, UPG, Anderson, FixedPointIteration, Implicit, NormalCG, Status

SPLITTINGS = {"peaceman_rachford": 1.0, "forward_backward": 0.1}


def net(splitting: str = "peaceman_rachford", **options: object) -> MON:
    torch.manual_seed(0)
    options = {"solver": FixedPointIteration(max_steps=3000, rtol=1e-13), "alpha": SPLITTINGS[splitting], **options}
    model = MON(in_features=6, num_classes=3, width=8, splitting=splitting, **options).double()
    for weight in (model.monotone.a.weight, model.monotone.b.weight):
        torch.nn.init.normal_(weight, std=0.5)
    return model


def images() -> torch.Tensor:
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def dense_equilibrium(model: MON, x: torch.Tensor) -> torch.Tensor:
    """Solve z = ReLU(W z + u) by Newton's method, without any splitting."""
    w, u = model.monotone.matrix().detach(), model.inject(x).detach()
    return newton(lambda z: torch.relu(z @ w.T + u), torch.zeros_like(u), steps=50)


def dense_gradients(model: MON, x: torch.Tensor) -> torch.Tensor:
    """Differentiate the sum of squared logits through (I − D W)⁻¹ D, D the slopes of ReLU."""
    w, u, z = model.monotone.matrix(), model.inject(x), dense_equilibrium(model, x)
    slope = (z @ w.T + u > 0).double()
    leaf = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(model.head(leaf).square().sum(), leaf)
    system = torch.eye(8, dtype=torch.float64) - w.detach().T @ torch.diag_embed(slope)
    v = torch.linalg.solve(system, g[..., None])[..., 0]
    implicit = (slope * v * (z @ w.T + u)).sum()
    parameters = [*model.lift.parameters(), *model.monotone.parameters()]
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(implicit, parameters)])


def test_published_parameter_count() -> None:
    assert sum(parameter.numel() for parameter in MON().parameters()) == 84_313


@pytest.mark.parametrize("monotonicity", [0.1, 1.0])
def test_it_is_monotone_whatever_the_weights_are(monotonicity: float) -> None:
    model = net(monotonicity=monotonicity)
    w = model.monotone.matrix().detach()
    symmetric = torch.eye(8, dtype=torch.float64) - (w + w.T) / 2
    assert torch.linalg.eigvalsh(symmetric).min() >= monotonicity - 1e-12


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_both_splittings_find_the_equilibrium(splitting: str) -> None:
    model, x = net(splitting), images()
    with torch.no_grad():
        _, ((_, z, solution),) = model(x)
    assert (solution.status == Status.converged).all()
    torch.testing.assert_close(torch.relu(z), dense_equilibrium(model, x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("adjoint", [GMRES, Anderson, NormalCG])
@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_both_splittings_have_the_gradient_of_the_equation(splitting: str, adjoint: type) -> None:
    model, x = net(splitting), images()
    model.gradient = Implicit(adjoint_solver=adjoint(max_steps=500, rtol=1e-12))
    loss = model(x)[0].square().sum()
    parameters = [*model.lift.parameters(), *model.monotone.parameters()]
    actual = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, parameters)])
    assert relative_error(actual, dense_gradients(model, x)) < 1e-8


@pytest.mark.parametrize("strategy", [UPG(k=200, damping=1.0), NPG(k=200, damping=1.0)])
def test_long_phantom_gradients_approach_it(strategy: UPG | NPG) -> None:
    model, x = net(), images()
    model.gradient = strategy
    parameters = [*model.lift.parameters(), *model.monotone.parameters()]
    grads = torch.autograd.grad(model(x)[0].square().sum(), parameters)
    assert relative_error(torch.cat([grad.flatten() for grad in grads]), dense_gradients(model, x)) < 1e-6


def test_the_matrices_are_computed_once_per_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = net(), []
    original = torch.linalg.inv_ex
    monkeypatch.setattr(torch.linalg, "inv_ex", lambda matrix: calls.append(1) or original(matrix))
    model(images())[0].sum().backward()
    assert len(calls) == 1
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_peaceman_rachford_is_quick_at_the_default_size() -> None:
    """Under 30 steps to a relative 1e-5 at initialisation."""
    torch.manual_seed(0)
    model = MON(solver=FixedPointIteration(max_steps=30, rtol=1e-5))
    _, ((_, _, solution),) = model(torch.randn(16, 1, 28, 28))
    assert (solution.status == Status.converged).all()


def test_it_runs_in_half_precision_autocast() -> None:
    model = MON()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = model(torch.randn(4, 784))
    logits.float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"monotonicity": 0.0}, {"splitting": "douglas"}, {"width": 0}])
def test_bad_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        MON(**arguments)
