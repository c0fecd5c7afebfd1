"""The Jacobian-based baseline: conjugate gradients on the normal equations of the adjoint system."""

from types import SimpleNamespace

import pytest
import torch
from support.problems import (
    AFFINE,
    CONTRACTIVE,
    Recorder,
    dense_implicit_gradient,
    dense_jacobian,
    gradients_of,
    linear,
    newton,
    random,
    relative_error,
    tanh,
)

from deq_lightning.gradients import Implicit
from deq_lightning.gradients.jacobian import Jacobian
from deq_lightning.solvers import Anderson, NormalCG
from deq_lightning.state import pack


@pytest.mark.parametrize("problem", {**CONTRACTIVE, **AFFINE})
def test_the_gradient_is_the_dense_solve(problem):
    problem = {**CONTRACTIVE, **AFFINE}[problem]()
    z = newton(problem.f, problem.z0)
    g = random(*pack(z).shape, seed=3)
    strategy = Implicit(adjoint_solver=NormalCG(max_steps=400, rtol=1e-11))
    actual = gradients_of(problem, strategy.attach(problem.f, z), g)
    assert relative_error(actual, dense_implicit_gradient(problem, z, g)) < 1e-8


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_the_forward_mode_product_is_the_dense_one(problem):
    problem = CONTRACTIVE[problem]()
    jacobian = Jacobian(problem.f, problem.z0)
    dense, v = dense_jacobian(problem.f, problem.z0), random(*pack(problem.z0).shape, seed=4)
    torch.testing.assert_close(jacobian(v), torch.einsum("bij,bj->bi", dense, v))
    torch.testing.assert_close(jacobian.transposed(v), torch.einsum("bji,bj->bi", dense, v))


def test_the_minimiser_is_that_of_the_krylov_space():
    """After k strides the residual is the least that A times the span of (AᵀA)ⁱ Aᵀ r, i < k, allows."""
    problem = linear(radius=0.9, dim=8, batch=1)
    weight, g = problem.cell.weight.detach(), random(1, 8, seed=3)
    a = torch.eye(8, dtype=torch.float64) - weight.T
    affine = SimpleNamespace(transposed=lambda v: v @ weight.T)
    step, z = NormalCG(max_steps=6, rtol=0).start_on(affine, g), g
    basis, r0 = [], g - g @ a.T
    for k in range(6):
        fz = z @ weight + g
        z = step(z, fz, fz - z)
        if k:
            images = torch.cat(basis) @ a.T
            best = torch.linalg.lstsq(images.T, r0.T).solution
            least = (r0.T - images.T @ best).norm()
            torch.testing.assert_close(step.residual.norm(), least)
            torch.testing.assert_close(g - step.point @ a.T, step.residual)
        basis.append((basis[-1] @ a.T if basis else r0) @ a)


def test_every_step_costs_one_product_and_one_forward_mode_product():
    problem = tanh()
    z = newton(problem.f, problem.z0)
    recorder = Recorder(problem.f)
    attached = Implicit(adjoint_solver=NormalCG(max_steps=5, rtol=0)).attach(recorder, z)
    assert recorder.calls == 1
    gradients_of(problem, attached, random(*z.shape))
    assert recorder.calls == 1 + 4  # the last evaluation takes no step


@pytest.mark.parametrize("rtol", [1e-3, 1e-10])
def test_samples_are_solved_each_for_itself(rtol):
    problem = tanh()
    z = newton(problem.f, problem.z0)
    g = random(*z.shape, seed=3) * torch.tensor([[1.0], [1e-6], [0.0]], dtype=torch.float64)
    strategy = Implicit(adjoint_solver=NormalCG(max_steps=100, rtol=rtol))
    together = torch.autograd.grad(strategy.attach(problem.f, z), problem.u, g)[0]
    assert torch.isfinite(together).all() and (together[2] == 0).all()
    for sample in range(2):
        alone = problem.only([sample])
        expected = torch.autograd.grad(strategy.attach(alone.f, z[[sample]]), alone.u, g[[sample]])[0]
        torch.testing.assert_close(together[[sample]], expected, rtol=1e-9, atol=1e-16)


def test_under_autocast_the_forward_mode_product_is_in_half_too():
    torch.manual_seed(0)
    cell = torch.nn.Linear(16, 16)
    u = torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, _ = Implicit(adjoint_solver=NormalCG()).fixed_point(
            lambda z: torch.tanh(cell(z) + u), u.detach(), Anderson()
        )
    z.square().sum().backward()
    exact = Implicit().fixed_point(lambda z: torch.tanh(cell(z) + u), u.detach(), Anderson())[0]
    expected = torch.autograd.grad(exact.square().sum(), u)[0]
    assert torch.cosine_similarity(u.grad.flatten(), expected.flatten(), dim=0) > 0.999


def test_it_is_no_solver_of_models():
    with pytest.raises(ValueError, match="`NormalCG` solves the adjoint systems of `Implicit`"):
        NormalCG().solve(tanh().f, tanh().z0)
