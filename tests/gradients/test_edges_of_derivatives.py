"""Derivatives of every strategy in every mode and order, against dense linear algebra and finite differences."""

import copy
from functools import partial

import pytest
import torch
from support.marks import slow
from support.problems import (
    CONTRACTIVE,
    Recorder,
    dense_jacobian,
    matrix,
    newton,
    pyramid,
    random,
    relative_error,
    rotation,
    tanh,
)
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from deq_lightning.estimators import gradient_audit, jacobian_penalty, spectral_radius
from deq_lightning.gradients import JFB, NPG, UPG, Implicit, Unrolled
from deq_lightning.gradients.jacobian import Jacobian
from deq_lightning.solvers import GMRES, Anderson, NormalCG
from deq_lightning.state import pack, unpack

SOLVER = Anderson(200, 1e-13, history=30)
EXACT = Implicit(adjoint_solver=GMRES(200, 1e-13, history=60))
STRATEGIES = {
    "implicit": EXACT,
    "npg": NPG(k=4, damping=0.6),
    "upg": UPG(k=4, damping=0.6),
    "checkpoint": UPG(k=4, damping=0.6, checkpoint=True),
    "jfb": JFB(),
    "unrolled": Unrolled(unroll_steps=60),
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
W, V, U = matrix(4, 0.6), matrix(4, 0.5, seed=3), random(3, 4)
START = torch.zeros(3, 4, dtype=torch.float64)
TANGENTS = random(4, 4, seed=5), random(3, 4, seed=6)


def solved(strategy, weight, u, z0=START):
    return strategy.fixed_point(lambda z: torch.tanh(z @ weight.T + u), z0, SOLVER)[0]


def inverse(strategy, matrix):
    """Return what a strategy puts in place of (I − M)⁻¹."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype).expand_as(matrix)
    if strategy == "jfb":
        return eye
    if strategy in ("implicit", "unrolled"):
        return torch.linalg.inv(eye - matrix)
    b = 0.6 * matrix + 0.4 * eye
    return 0.6 * sum(torch.linalg.matrix_power(b, i) for i in range(4))


def expected_tangent(strategy):
    """Return the strategy's (I − J)⁻¹ times the derivative of f in the directions `TANGENTS`, densely."""
    z = newton(lambda z: torch.tanh(z @ W.T + U), START)
    slope = 1 - z**2
    pushed = slope * (z @ TANGENTS[0].T + TANGENTS[1])
    return torch.einsum("bij,bj->bi", inverse(strategy, slope[:, :, None] * W), pushed)


def by_jvp(strategy):
    return torch.func.jvp(partial(solved, strategy), (W, U), TANGENTS)[1]


def by_dual_numbers(strategy):
    with forward_ad.dual_level():
        weight, u = map(forward_ad.make_dual, (W, U), TANGENTS)
        return forward_ad.unpack_dual(solved(strategy, weight, u)).tangent


def by_columns(strategy):
    columns = torch.func.jacfwd(lambda s: solved(strategy, W + s * TANGENTS[0], U + s * TANGENTS[1]))
    return columns(torch.zeros((), dtype=torch.float64))


FORWARD = {"jvp": by_jvp, "dual numbers": by_dual_numbers, "jacfwd": by_columns}


@every_strategy
@pytest.mark.parametrize("gradients", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("mode", FORWARD)
def test_edges_forward_mode(strategy, gradients, mode):
    with gradients():
        tangent = FORWARD[mode](STRATEGIES[strategy])
    assert relative_error(tangent, expected_tangent(strategy)) < 1e-9


@pytest.mark.parametrize("strategy", ["implicit", "npg", "upg", "jfb"])
@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_edges_forward_mode_of_parameters(strategy, problem):
    """Against the gradient of the same strategy: <g, t> is <gradient, direction>; for modules and tuples too."""
    problem = CONTRACTIVE[problem]()
    f, inputs = problem.f, problem.inputs
    g = random(*pack(problem.z0).shape, seed=3)
    directions = [random(*part.shape, seed=4 + number) for number, part in enumerate(inputs)]
    z = newton(f, problem.z0)
    gradients = torch.autograd.grad(pack(STRATEGIES[strategy].attach(f, z)), inputs, g)
    expected = sum((a * b).sum() for a, b in zip(gradients, directions, strict=True))
    names = [name for name, _ in problem.cell.named_parameters()]
    with forward_ad.dual_level(), torch.no_grad():
        *weights, u = map(forward_ad.make_dual, (part.detach() for part in inputs), directions)
        cell = copy.deepcopy(problem.cell)
        for name, weight in zip(names, weights, strict=True):
            owner = cell.get_submodule(name.rpartition(".")[0])
            delattr(owner, name.rpartition(".")[2])
            setattr(owner, name.rpartition(".")[2], weight)
        attached = STRATEGIES[strategy].attach(lambda z: cell(z, u), z)
        tangent = forward_ad.unpack_dual(pack(attached)).tangent
    assert ((tangent * g).sum() - expected).abs() < 1e-9 * expected.abs()


def test_edges_forward_mode_above_radius_one():
    problem, direction = rotation(radius=1.7), random(3, 6, seed=7)
    f = lambda u: EXACT.fixed_point(lambda z: problem.cell(z, u), problem.z0, GMRES(100, 1e-13, history=30))[0]  # noqa: E731
    with torch.no_grad():
        _, tangent = torch.func.jvp(f, (problem.u.detach(),), (direction,))
    eye = torch.eye(6, dtype=torch.float64)
    assert relative_error(tangent, torch.linalg.solve(eye - problem.cell.weight.detach(), direction.T).T) < 1e-9


# --- an equilibrium inside the cell of another, and the estimators


def nested(strategy, z, weight=W, inner=V):
    y = strategy.fixed_point(lambda y: torch.tanh(y @ inner.T + z), torch.zeros_like(z), SOLVER)[0]
    return torch.tanh(y @ weight.T + U)


def nested_jacobian(strategy, z):
    """Return the Jacobian that the strategy gives `nested`, densely."""
    y = newton(lambda y: torch.tanh(y @ V.T + z), START)
    slope = 1 - y**2
    inner = inverse(strategy, slope[:, :, None] * V) * slope[:, None]
    return (1 - nested(EXACT, z) ** 2)[:, :, None] * (W @ inner)


@every_strategy
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_edges_estimators_see_through_an_inner_equilibrium(strategy, mode):
    f, v = partial(nested, STRATEGIES[strategy]), random(3, 4, seed=8)
    expected = nested_jacobian(strategy, random(3, 4, seed=9))
    with mode():
        z = random(3, 4, seed=9)
        radius = spectral_radius(f, z)
        product = Jacobian(f, z)(v)
    torch.testing.assert_close(product, torch.einsum("bij,bj->bi", expected, v), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(radius, torch.linalg.eigvals(expected).abs().amax(dim=1), rtol=1e-9, atol=1e-12)


def test_edges_spectral_radius_of_tensors_made_in_inference_mode():
    expected = spectral_radius(partial(nested, EXACT), U)
    with torch.inference_mode():
        f = partial(nested, EXACT, weight=W.clone(), inner=V.clone())
        torch.testing.assert_close(spectral_radius(f, U.clone()), expected, rtol=1e-9, atol=0)


@every_strategy
def test_edges_normal_cg_and_the_audit_see_through_an_inner_equilibrium(strategy):
    weight = W.clone().requires_grad_()
    f, g = partial(nested, STRATEGIES[strategy], weight=weight), random(3, 4, seed=3)
    z = newton(f, START)
    eye = torch.eye(4, dtype=torch.float64)
    w = torch.einsum("bji,bj->bi", torch.linalg.inv(eye - dense_jacobian(f, z)), g)
    (expected,) = torch.autograd.grad(f(z), weight, w)
    subject = Implicit(adjoint_solver=NormalCG(60, 1e-12))
    (actual,) = torch.autograd.grad(subject.attach(f, z), weight, g)
    assert relative_error(actual, expected) < 1e-9
    assert subject.adjoint_solutions[0].residual.max() <= 1e-12
    with torch.inference_mode():
        audit = gradient_audit(subject, f, z, g, [weight], SOLVER)
    assert audit.cosine == pytest.approx(1, abs=1e-9) and audit.norm_ratio == pytest.approx(1, abs=1e-5)


def test_edges_the_penalty_of_a_map_with_an_inner_equilibrium():
    """Its gradient is a second derivative of the inner one."""

    def penalty(s):
        torch.manual_seed(0)
        return jacobian_penalty(partial(nested, EXACT, weight=W + s * W, inner=V + s * V), U)

    s = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(penalty(s), s)
    assert slope.item() == pytest.approx(((penalty(1e-5) - penalty(-1e-5)) / 2e-5).item(), rel=1e-7)


@pytest.mark.parametrize("inner", ["implicit", *map(slow, ["npg", "upg", "unrolled"])])
def test_edges_equilibrium_inside_equilibrium_in_every_mode(inner):
    def loss(s):
        f = partial(nested, STRATEGIES[inner], weight=W + s * TANGENTS[0], inner=V + s * TANGENTS[0].T)
        return EXACT.fixed_point(f, START, SOLVER)[0].sin().sum()

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    leaf = zero.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    if inner in ("implicit", "unrolled"):
        difference = (loss(zero + 1e-6) - loss(zero - 1e-6)) / 2e-6
        assert expected.item() == pytest.approx(difference.item(), rel=1e-7)
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(zero, one))).tangent
    for actual in (tangent, torch.func.grad(loss)(zero), torch.func.jvp(loss, (zero,), (one,))[1]):
        assert actual.item() == pytest.approx(expected.item(), rel=1e-9)


# --- the ordinary path, and the start


@pytest.mark.parametrize("strategy", ["implicit", "npg", "jfb"])
def test_edges_one_backward_costs_what_it_did(strategy):
    """One evaluation of f, none in backward, and no mode that watches operations."""
    problem, modes = tanh(), []

    def f(z):
        modes.append(torch._C._len_torch_function_stack())
        return problem.f(z)

    recorder = Recorder(f)
    z, solution = STRATEGIES[strategy].fixed_point(recorder, problem.z0, Anderson())
    z.sum().backward()
    assert recorder.calls == solution.evaluations + 1 and set(modes) == {0}


@pytest.mark.parametrize("make", [tanh, pyramid])
def test_edges_the_start_receives_what_eleven_says(make):
    """MIND, Eq. 11: (∂L/∂z)ᵀ ∂f/∂z at the fixed point; parameters and injection what the default gives them."""
    problem = make()
    z0 = tree_map(lambda part: part.clone().requires_grad_(), problem.z0)
    z = newton(problem.f, problem.z0)
    g = random(*pack(z).shape, seed=3)
    inputs = [*torch.utils._pytree.tree_leaves(z0), *problem.inputs]
    outputs = [
        strategy.fixed_point(problem.f, z0, SOLVER)[0] for strategy in (JFB(), JFB(through_start=True), UPG(), EXACT)
    ]
    default, through, *others = (torch.autograd.grad(pack(z), inputs, g, allow_unused=True) for z in outputs)
    starts = len(inputs) - len(problem.inputs)
    expected = unpack(torch.einsum("bji,bj->bi", dense_jacobian(problem.f, z), g), z)
    torch.testing.assert_close(through[:starts], tuple(torch.utils._pytree.tree_leaves(expected)))
    assert all(torch.equal(*pair) for pair in zip(through[starts:], default[starts:], strict=True))
    assert all(torch.equal(part, other) for part, other in zip(*map(pack, outputs[:2]), strict=True))
    assert all(gradients[:starts] == (None,) * starts for gradients in (default, *others))
    assert eval(repr(JFB(through_start=True))).through_start and not JFB().through_start


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
def test_edges_the_start_under_transforms(mode):
    z0, v = random(3, 4, seed=2), random(3, 4, seed=3)
    z = newton(lambda z: torch.tanh(z @ W.T + U), START)
    jacobian = (1 - z**2)[:, :, None] * W
    f = partial(solved, JFB(through_start=True), W, U)
    actual = torch.func.vjp(f, z0)[1](v)[0] if mode == "vjp" else torch.func.jvp(f, (z0,), (v,))[1]
    expected = torch.einsum("bji,bj->bi" if mode == "vjp" else "bij,bj->bi", jacobian, v)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_edges_spectral_radius_is_biased_upwards_far_from_normal():
    chain = torch.diag(torch.ones(99, dtype=torch.float64), 1)
    normal = torch.diag(torch.linspace(-0.9, 0.7, 100, dtype=torch.float64))
    z = torch.zeros(1, 100, dtype=torch.float64)
    assert 0.6 < spectral_radius(lambda z: z @ chain.T, z, steps=100).item() < 0.9
    assert spectral_radius(lambda z: z @ normal.T, z, steps=100).item() == pytest.approx(0.9, rel=1e-9)
    assert "biased upwards" in spectral_radius.__doc__ and "0.7" in spectral_radius.__doc__
