"""The mathematics of every gradient strategy, in float64, against dense solves, closed forms and finite differences."""

import pytest
import torch
from support.problems import (
    AFFINE,
    CONTRACTIVE,
    dense_gradient,
    dense_implicit_gradient,
    gradients_of,
    linear,
    newton,
    random,
    relative_error,
    tanh,
)
from torch.autograd import gradcheck

from deq_lightning.gradients import JFB, NPG, UPG, Implicit, Unrolled
from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration
from deq_lightning.state import pack

TIGHT = {
    "plain": lambda: FixedPointIteration(max_steps=1000, rtol=1e-12),
    "anderson": lambda: Anderson(max_steps=300, rtol=1e-12, history=40),
    "broyden": lambda: Broyden(max_steps=300, rtol=1e-12, history=300),
    "gmres": lambda: GMRES(max_steps=300, rtol=1e-12, history=50),
}
SERIES = [(1, 1.0), (1, 0.5), (2, 0.3), (5, 1.0), (5, 0.5), (9, 0.7)]


def at_fixed_point(problem):
    """Return the fixed point to rounding and an incoming gradient."""
    z = newton(problem.f, problem.z0)
    return z, random(*pack(z).shape, seed=3)


def neumann(k: int, damping: float):
    """Return λ Σ_{i<k} Bⁱ with B = λ Jᵀ + (1 - λ) I, as powers of a dense matrix."""

    def series(jt):
        eye = torch.eye(jt.shape[1], dtype=jt.dtype).expand_as(jt)
        b = damping * jt + (1 - damping) * eye
        return damping * sum(torch.linalg.matrix_power(b, i) for i in range(k))

    return series


@pytest.mark.parametrize("adjoint", TIGHT)
@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_implicit_equals_the_dense_solve(problem, adjoint):
    problem = CONTRACTIVE[problem]()
    z, g = at_fixed_point(problem)
    actual = gradients_of(problem, Implicit(adjoint_solver=TIGHT[adjoint]()).attach(problem.f, z), g)
    assert relative_error(actual, dense_implicit_gradient(problem, z, g)) < 1e-8


@pytest.mark.parametrize("adjoint", ["anderson", "broyden", "gmres"])
def test_implicit_needs_no_contraction(adjoint):
    problem = AFFINE["rotation"]()
    z, g = at_fixed_point(problem)
    actual = gradients_of(problem, Implicit(adjoint_solver=TIGHT[adjoint]()).attach(problem.f, z), g)
    assert relative_error(actual, dense_implicit_gradient(problem, z, g)) < 1e-8


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_implicit_by_default_is_as_good_as_its_tolerance(problem):
    problem = CONTRACTIVE[problem]()
    z, g = at_fixed_point(problem)
    actual = gradients_of(problem, Implicit().attach(problem.f, z), g)
    assert relative_error(actual, dense_implicit_gradient(problem, z, g)) < 2e-2


@pytest.mark.parametrize("adjoint", [FixedPointIteration, Anderson, Broyden, GMRES])
def test_implicit_starts_from_the_incoming_gradient(adjoint):
    """So a budget of one product is JFB, and more products only improve on it."""
    problem = tanh()
    z, g = at_fixed_point(problem)
    actual = gradients_of(problem, Implicit(adjoint_solver=adjoint(max_steps=1)).attach(problem.f, z), g)
    assert torch.equal(actual, gradients_of(problem, JFB().attach(problem.f, z), g))


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_implicit_equals_long_unrolling_and_a_finite_difference(problem):
    problem = CONTRACTIVE[problem]()
    z, g = at_fixed_point(problem)
    strategy = Implicit(adjoint_solver=TIGHT["gmres"]())
    actual = gradients_of(problem, strategy.fixed_point(problem.f, problem.z0, TIGHT["plain"]())[0], g)
    unrolled = Unrolled(unroll_steps=300).fixed_point(problem.f, problem.z0, Anderson())[0]
    assert relative_error(actual, gradients_of(problem, unrolled, g)) < 1e-6

    directions = [
        torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(7)) for x in problem.inputs
    ]

    def shifted(step: float):
        with torch.no_grad():
            for x, direction in zip(problem.inputs, directions, strict=True):
                x.add_(direction, alpha=step)
            value = (pack(newton(problem.f, z)) * g).sum()
            for x, direction in zip(problem.inputs, directions, strict=True):
                x.sub_(direction, alpha=step)
        return value

    difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
    assert (actual @ torch.cat([d.flatten() for d in directions])).item() == pytest.approx(difference.item(), rel=1e-6)


@pytest.mark.parametrize("adjoint", TIGHT)
def test_gradcheck_end_to_end(adjoint):
    problem = tanh(radius=0.5, dim=3, batch=2)

    def prediction(weight, u):
        strategy = Implicit(adjoint_solver=TIGHT[adjoint]())
        z, _ = strategy.fixed_point(lambda z: torch.tanh(z @ weight.T + u), problem.z0, Anderson(100, 1e-14, history=3))
        return z.sin()

    assert gradcheck(prediction, (problem.cell.weight, problem.u), atol=1e-6)


@pytest.mark.parametrize(("k", "damping"), SERIES)
@pytest.mark.parametrize("strategy", [NPG, UPG])
@pytest.mark.parametrize("problem", ["linear", "rotation"])
def test_phantom_gradients_equal_their_closed_form(problem, strategy, k, damping):
    problem = AFFINE[problem]()
    z, g = at_fixed_point(problem)
    actual = gradients_of(problem, strategy(k=k, damping=damping).attach(problem.f, z), g)
    assert relative_error(actual, dense_gradient(problem, z, g, neumann(k, damping))) < 1e-10


@pytest.mark.parametrize("strategy", [NPG, UPG])
@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_phantom_gradients_equal_their_closed_form_on_nonlinear_maps(problem, strategy):
    """At an exact fixed point every unrolled step has the same Jacobian."""
    problem = CONTRACTIVE[problem]()
    z, g = at_fixed_point(problem)
    actual = gradients_of(problem, strategy(k=4, damping=0.6).attach(problem.f, z), g)
    assert relative_error(actual, dense_gradient(problem, z, g, neumann(4, 0.6))) < 1e-8


def test_upg_differentiates_its_own_path_where_the_point_is_not_exact():
    """Away from the fixed point UPG is the gradient of its refinement, and returns that refinement."""
    problem = tanh()
    expected = problem.z0
    for _ in range(3):
        expected = 0.6 * expected + 0.4 * problem.f(expected)
    actual = UPG(k=3, damping=0.4).attach(problem.f, problem.z0)
    g = random(*problem.z0.shape, seed=3)
    torch.testing.assert_close(actual, expected)
    assert relative_error(gradients_of(problem, actual, g), gradients_of(problem, expected, g)) < 1e-13


@pytest.mark.parametrize("one_step", [UPG(k=1, damping=1), NPG(k=1, damping=1)])
@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_jfb_is_one_undamped_step(problem, one_step):
    problem = CONTRACTIVE[problem]()
    z, g = at_fixed_point(problem)
    outputs = [strategy.attach(problem.f, z) for strategy in (JFB(), one_step)]
    assert torch.equal(pack(outputs[0]), pack(outputs[1]))
    jfb, other = (gradients_of(problem, output, g) for output in outputs)
    assert torch.equal(jfb, other)
    assert (
        relative_error(jfb, dense_gradient(problem, z, g, lambda jt: torch.eye(jt.shape[1]).to(jt).expand_as(jt)))
        < 1e-12
    )


@pytest.mark.parametrize("damping", [1.0, 0.5])
@pytest.mark.parametrize("strategy", [NPG, UPG])
@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_phantom_gradients_approach_the_exact_one(problem, strategy, damping):
    problem = CONTRACTIVE[problem]()
    z, g = at_fixed_point(problem)
    exact = dense_implicit_gradient(problem, z, g)
    errors = []
    for k in (4, 16, 64, 256):
        actual = gradients_of(problem, strategy(k=k, damping=damping).attach(problem.f, z), g)
        errors.append(relative_error(actual, exact))
    assert errors[0] > 1e-3 and errors[-1] < 1e-8
    assert errors[1] < 0.8 * errors[0] and errors[2] < 0.5 * errors[1]


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_checkpointing_changes_nothing_but_memory(problem):
    problem = CONTRACTIVE[problem]()
    z, g = at_fixed_point(problem)
    plain, saved = (UPG(k=4, checkpoint=checkpoint).attach(problem.f, z) for checkpoint in (False, True))
    assert torch.equal(pack(plain), pack(saved))
    assert torch.equal(gradients_of(problem, plain, g), gradients_of(problem, saved, g))


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_unrolled_is_autograd_of_the_loop(problem):
    problem = CONTRACTIVE[problem]()
    z = problem.z0
    for _ in range(7):
        z = problem.f(z)
    g = random(*pack(z).shape, seed=3)
    actual, solution = Unrolled(unroll_steps=7).fixed_point(problem.f, problem.z0, Anderson())
    assert solution is None
    assert torch.equal(pack(actual), pack(z))
    assert torch.equal(gradients_of(problem, actual, g), gradients_of(problem, z, g))


STRATEGIES = [Implicit(adjoint_solver=TIGHT["gmres"]()), NPG(k=6), UPG(k=3), UPG(k=3, checkpoint=True), JFB()]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_one_map_twice_in_one_graph(strategy):
    """A siamese or recurrent use: two equilibria of one cell before one backward, the second fed by the first."""
    problem = linear(dim=4)
    first_g, second_g = random(3, 4, seed=5), random(3, 4, seed=6)
    solver = TIGHT["gmres"]()

    def chain(u):
        first, _ = strategy.fixed_point(lambda z: problem.cell(z, u), problem.z0, solver)
        second, _ = strategy.fixed_point(lambda z: problem.cell(z, first), problem.z0, solver)
        return first, second

    first, second = chain(problem.u)
    together = torch.autograd.grad([first, second], problem.inputs, [first_g, second_g])

    # the same, one equilibrium at a time
    first = strategy.fixed_point(problem.f, problem.z0, solver)[0]
    middle = first.detach().requires_grad_()
    second = strategy.fixed_point(lambda z: problem.cell(z, middle), problem.z0, solver)[0]
    weight_2, g_middle = torch.autograd.grad(second, [problem.cell.weight, middle], second_g)
    weight_1, u_1 = torch.autograd.grad(first, problem.inputs, first_g + g_middle)
    torch.testing.assert_close(together, (weight_1 + weight_2, u_1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_one_graph_may_be_differentiated_several_times(strategy):
    problem = tanh()
    z, g = at_fixed_point(problem)
    output = strategy.attach(problem.f, z)
    first, second, scaled = (
        torch.autograd.grad(output, problem.inputs, s * g, retain_graph=True) for s in (1.0, 1.0, 2.0)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(tuple(2 * x for x in first), scaled, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-6, 1e9])
@pytest.mark.parametrize("adjoint", [FixedPointIteration, Anderson, Broyden, GMRES])
def test_the_scale_of_the_loss_does_not_matter(adjoint, scale):
    problem = tanh()
    cell, u, z0 = problem.cell.float(), problem.u.detach().float().requires_grad_(), problem.z0.float()
    strategy = Implicit(adjoint_solver=adjoint(max_steps=40, rtol=1e-5))

    def direction(scale):
        z, _ = strategy.fixed_point(lambda z: cell(z, u), z0, Anderson(rtol=1e-5))
        grads = torch.autograd.grad(scale * z.sin().sum(), [cell.weight, u])
        return torch.cat([grad.flatten() for grad in grads]) / scale

    assert relative_error(direction(scale), direction(1.0)) < 1e-3


@pytest.mark.parametrize("scale", [1e-6, 1e9])
@pytest.mark.parametrize("adjoint", [Anderson, Broyden, GMRES])
def test_samples_of_very_different_gradients_are_all_exact(adjoint, scale):
    """One sample's gradient is `scale` times the others': its mates must not be lost in its tolerance."""
    problem = tanh()
    z, g = at_fixed_point(problem)
    g[0] *= scale
    strategy = Implicit(adjoint_solver=adjoint(max_steps=200, rtol=1e-9, history=100))
    (actual,) = torch.autograd.grad(strategy.attach(problem.f, z), problem.u, g)
    jt = torch.autograd.functional.jacobian(lambda z: problem.f(z).sum(0), z).permute(1, 2, 0)
    w = torch.linalg.solve(torch.eye(8, dtype=g.dtype) - jt, g)
    expected = w * (1 - z**2)
    assert ((actual - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-6
