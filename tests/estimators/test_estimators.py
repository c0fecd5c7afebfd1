"""Spectral radius, Jacobian penalty and gradient audit against dense linear algebra."""

import pytest
import torch
from support.problems import (
    CONTRACTIVE,
    dense_implicit_gradient,
    dense_jacobian,
    linear,
    matrix,
    newton,
    random,
    rotations,
    tanh,
)

from deq_lightning.estimators import JacobianPenalty, gradient_audit, jacobian_penalty, spectral_radius
from deq_lightning.gradients import JFB, NPG, UPG, Implicit, Unrolled
from deq_lightning.models import Equilibrium
from deq_lightning.solvers import GMRES
from deq_lightning.state import pack, unpack


def dense_radius(problem, z):
    return torch.linalg.eigvals(dense_jacobian(problem.f, z)).abs().amax(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [6, 64])
def test_radius_of_a_rotation(dim, dtype):
    """Every eigenvalue is one of a complex pair of modulus 0.9."""
    weight = rotations(dim, 0.9).to(dtype)
    radius = spectral_radius(lambda z: z @ weight.T, torch.zeros(2, dim, dtype=dtype))
    torch.testing.assert_close(radius, torch.full((2,), 0.9, dtype=dtype), rtol=2e-2, atol=0)


@pytest.mark.parametrize("seed", range(10))
def test_radius_of_a_random_matrix(seed):
    weight = matrix(64, 0.9, seed=seed).float()
    radius = spectral_radius(lambda z: z @ weight.T, torch.zeros(1, 64))
    assert radius.item() == pytest.approx(0.9, rel=0.02)


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_radius_of_every_sample(problem):
    problem = CONTRACTIVE[problem]()
    z = newton(problem.f, problem.z0)
    torch.testing.assert_close(spectral_radius(problem.f, z, steps=60), dense_radius(problem, z), rtol=1e-6, atol=1e-9)


def test_radius_of_a_non_normal_map():
    """A Jordan block's powers grow long before they decay; norms say 10, eigenvalues 0.5."""
    weight = 0.5 * torch.eye(8, dtype=torch.float64) + torch.diag(torch.full((7,), 10.0, dtype=torch.float64), 1)
    weight[0, 0] = 0.7
    radius = spectral_radius(lambda z: z @ weight.T, torch.zeros(1, 8, dtype=torch.float64))
    assert radius.item() == pytest.approx(torch.linalg.eigvals(weight).abs().max().item(), rel=2e-2)


def test_radius_where_the_krylov_space_ends_early():
    assert spectral_radius(lambda z: 0.3 * z, torch.ones(2, 40)).tolist() == pytest.approx([0.3, 0.3], rel=1e-5)
    assert spectral_radius(lambda z: 0 * z + 1, torch.ones(2, 5)).tolist() == [0, 0]
    assert spectral_radius(torch.ones_like, torch.ones(2, 5)).tolist() == [0, 0]


def test_radius_tells_where_there_is_none():
    radius = spectral_radius(lambda z: z * torch.tensor([[1.0], [torch.nan]]), torch.ones(2, 3))
    assert radius[0] == pytest.approx(1) and radius[1].isnan()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_radius_needs_no_gradients_around_it_and_disturbs_nothing(mode):
    problem = tanh()
    z = newton(problem.f, problem.z0)
    before = torch.get_rng_state()
    with mode():
        radius = spectral_radius(problem.f, z)
    torch.testing.assert_close(radius, dense_radius(problem, z))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in problem.inputs)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_autocast_does_not_touch_the_algebra_of_the_radius(mode):
    """The map is rounded to half, as it is in training; the basis and the projections are not."""
    weight = matrix(64, 0.9).float()
    rounded = (weight.T.bfloat16()).double()
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        radius = spectral_radius(lambda z: z @ weight.T, torch.zeros(1, 64), steps=64)
    assert radius.dtype == torch.float32
    assert radius.item() == pytest.approx(torch.linalg.eigvals(rounded).abs().max().item(), rel=0.01)


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_the_penalty_is_the_frobenius_norm(problem):
    problem = CONTRACTIVE[problem]()
    z = newton(problem.f, problem.z0)
    jacobian = dense_jacobian(problem.f, z)
    expected = jacobian.square().sum(dim=(1, 2)).mean() / jacobian.shape[1]
    torch.manual_seed(0)
    estimate = jacobian_penalty(problem.f, z, probes=4000)
    assert estimate.item() == pytest.approx(expected.item(), rel=0.05)


def test_the_gradient_of_the_penalty_is_a_finite_difference():
    problem = tanh()
    z = newton(problem.f, problem.z0)

    def value():
        torch.manual_seed(0)
        return jacobian_penalty(problem.f, z, probes=2)

    weight = problem.cell.weight
    direction = random(*weight.shape, seed=5)
    slope = (torch.autograd.grad(value(), weight)[0] * direction).sum()
    values = []
    for step in (1e-5, -1e-5):
        weight.data.add_(direction, alpha=step)
        values.append(value().item())
        weight.data.add_(direction, alpha=-step)
    assert slope.item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_the_penalty_does_not_differentiate_the_fixed_point():
    problem = tanh()
    z, _ = UPG().fixed_point(problem.f, problem.z0, GMRES())
    torch.manual_seed(0)
    attached = torch.autograd.grad(jacobian_penalty(problem.f, z), problem.cell.weight)[0]
    torch.manual_seed(0)
    detached = torch.autograd.grad(jacobian_penalty(problem.f, z.detach()), problem.cell.weight)[0]
    assert torch.equal(attached, detached)


def test_the_schedule_of_the_penalty():
    penalty = JacobianPenalty(weight=2.0, milestones={100: 0.5, 10: 3.0, 200: 0.0})
    weights = [penalty.weight_at(step) for step in (0, 9, 10, 99, 100, 199, 200, 10**6)]
    assert weights == [2, 2, 3, 3, 0.5, 0.5, 0, 0]
    problem = tanh()
    equilibria = [Equilibrium(problem.f, problem.z0, None)] * 2
    torch.manual_seed(0)
    single = [jacobian_penalty(problem.f, problem.z0).item() for _ in range(2)]
    torch.manual_seed(0)
    assert penalty(equilibria, 10).item() == pytest.approx(3 * sum(single) / 2)
    assert penalty(equilibria, 200).item() == 0


def test_the_frequency_of_the_penalty():
    problem = tanh()
    penalty = JacobianPenalty(frequency=0.3)
    torch.manual_seed(0)
    share = sum(penalty([Equilibrium(problem.f, problem.z0, None)], 0).item() > 0 for _ in range(400)) / 400
    assert 0.2 < share < 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "`weight` must be 0 or more"),
        ({"frequency": 0.0}, r"`frequency` must be in \(0, 1\]"),
        ({"frequency": 1.5}, r"`frequency` must be in \(0, 1\]"),
        ({"probes": 0}, "`probes` must be 1 or more"),
        ({"milestones": {-5: 1.0}}, "`milestones` must map"),
        ({"milestones": {5: -1.0}}, "`milestones` must map"),
        ({"milestones": {5: float("nan")}}, "`milestones` must map"),
        ({"milestones": {5: float("inf")}}, "`milestones` must map"),
        ({"milestones": {2.5: 1.0}}, "`milestones` must map"),
        ({"milestones": {True: 1.0}}, "`milestones` must map"),
        ({"milestones": [5]}, "`milestones` must map"),
    ],
)
def test_bad_penalties_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        JacobianPenalty(**arguments)


@pytest.mark.parametrize("strategy", [JFB(), UPG(k=3), NPG(k=4, damping=0.7), Unrolled(unroll_steps=2)])
@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_the_audit_is_the_angle_to_the_dense_gradient(problem, strategy):
    problem = CONTRACTIVE[problem]()
    z = newton(problem.f, problem.z0)
    g = random(*pack(z).shape, seed=3)
    parameters = list(problem.cell.parameters())
    cheap = torch.cat([x.flatten() for x in torch.autograd.grad(pack(strategy.attach(problem.f, z)), parameters, g)])
    exact = dense_implicit_gradient(problem, z, g)[: len(cheap)]  # the injection comes last
    audit = gradient_audit(strategy, problem.f, z, unpack(g, z), parameters)
    assert audit.cosine == pytest.approx((cheap @ exact / cheap.norm() / exact.norm()).item(), abs=1e-5)
    assert audit.norm_ratio == pytest.approx((cheap.norm() / exact.norm()).item(), rel=1e-4)
    assert audit.residual < 1e-5


def test_the_exact_strategy_passes_its_audit_and_is_not_changed():
    problem = linear()
    z = newton(problem.f, problem.z0)
    strategy = Implicit(adjoint_solver=GMRES(max_steps=50, rtol=1e-10))
    audit = gradient_audit(strategy, problem.f, z, random(*z.shape), problem.cell.parameters())
    assert audit.cosine == pytest.approx(1, abs=1e-9) and audit.norm_ratio == pytest.approx(1, abs=1e-5)
    assert strategy.adjoint_solutions == []


def test_the_audit_says_when_its_reference_has_not_converged():
    problem = linear(radius=1.3)
    audit = gradient_audit(
        JFB(),
        problem.f,
        problem.z0,
        random(*problem.z0.shape),
        problem.cell.parameters(),
        solver=GMRES(max_steps=2),
        adjoint_solver=GMRES(max_steps=2),
    )
    assert audit.residual > 1e-2


@pytest.mark.parametrize("layers", [1, 3])
def test_implicit_reports_every_adjoint_solve_of_the_latest_backward(layers):
    problem = linear()
    strategy = Implicit(adjoint_solver=GMRES(max_steps=50, rtol=1e-9))
    for _ in range(2):
        outputs = [strategy.attach(problem.f, problem.z0) for _ in range(layers)]
        torch.stack(outputs).sum().backward()
        assert len(strategy.adjoint_solutions) == layers
    for report in strategy.adjoint_solutions:
        assert report.z == () and (report.residual <= 1e-9).all() and report.evaluations > 1
