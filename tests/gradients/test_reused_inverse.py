"""The inverse Jacobian of the forward solve, used again for the adjoint one."""

import pytest
import torch
from support.problems import (
    CONTRACTIVE,
    Recorder,
    dense_implicit_gradient,
    dense_jacobian,
    gradients_of,
    newton,
    random,
    relative_error,
    tanh,
)

from deq_lightning.gradients import Implicit
from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration
from deq_lightning.state import pack

FORWARD = Broyden(max_steps=60, rtol=1e-13, history=60)


def test_broyden_gives_the_transpose_of_its_inverse():
    """H y = s for the last step s taken and the change y of f(z) − z along it, so <−Hᵀ g, y> = −<g, s> for every g."""
    problem = tanh()
    recorder = Recorder(problem.f)
    _, memory = Broyden(max_steps=9, rtol=0).run(recorder, problem.z0)
    points = torch.stack(recorder.points)
    step, change = points.diff(dim=0), (torch.stack(recorder.values) - points).diff(dim=0)
    for seed in range(3):
        g = random(*problem.z0.shape, seed=seed)
        actual = (memory.transposed_inverse(g) * change[-2]).sum(dim=1)  # the last evaluation takes no step
        torch.testing.assert_close(actual, -(g * step[-2]).sum(dim=1))


@pytest.mark.parametrize("adjoint", [GMRES, Anderson, Broyden])
@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_the_gradient_is_still_the_dense_solve(problem, adjoint):
    problem = CONTRACTIVE[problem]()
    strategy = Implicit(adjoint_solver=adjoint(max_steps=300, rtol=1e-12, history=60), reuse_inverse=True)
    z, _ = strategy.fixed_point(problem.f, problem.z0, FORWARD)
    g = random(*pack(z).shape, seed=3)
    exact = dense_implicit_gradient(problem, newton(problem.f, problem.z0), g)
    assert relative_error(gradients_of(problem, z, g), exact) < 1e-8


def test_on_a_stiff_problem_it_saves_products():
    """Radius 0.98 in 48 dimensions: the same budget leaves a several times smaller error."""
    problem = tanh(radius=1.6, dim=48, batch=4)
    z = newton(problem.f, problem.z0, steps=60)
    assert torch.linalg.eigvals(dense_jacobian(problem.f, z)).abs().max() > 0.8
    g = random(4, 48, seed=3)
    exact, errors = dense_implicit_gradient(problem, z, g), []
    for reuse in (False, True):
        strategy = Implicit(adjoint_solver=GMRES(max_steps=8, rtol=0), reuse_inverse=reuse)
        found, _ = strategy.fixed_point(problem.f, problem.z0, Broyden(max_steps=80, rtol=1e-11, history=80))
        errors.append(relative_error(gradients_of(problem, found, g), exact))
        assert strategy.adjoint_solutions[0].evaluations == 8
    assert errors[1] < errors[0] / 3


def test_it_asks_for_a_solver_that_builds_an_inverse():
    problem = tanh()
    with pytest.raises(ValueError, match=r"`reuse_inverse` needs `Broyden` as the model's solver, got .FixedPointIter"):
        Implicit(reuse_inverse=True).fixed_point(problem.f, problem.z0, FixedPointIteration())


def test_where_nothing_is_differentiated_any_solver_will_do():
    problem = tanh()
    with torch.no_grad():
        _, solution = Implicit(reuse_inverse=True).fixed_point(problem.f, problem.z0, FixedPointIteration())
    assert (solution.status == 0).all()
