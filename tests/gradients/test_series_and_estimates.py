"""Series that end by themselves or at random, and the solver's own inverse, against dense solves."""

import pytest
import torch
from support.problems import (
    CONTRACTIVE,
    LinearCell,
    Problem,
    dense_implicit_gradient,
    gradients_of,
    linear,
    matrix,
    newton,
    random,
    relative_error,
    rotation,
    tanh,
)
from support.weighted import Weighted
from torch import Tensor

from deq_lightning.configured import CombinationError
from deq_lightning.gradients import JFB, NPG, SHINE, GradientStrategy, Implicit, RouletteNPG, roulette
from deq_lightning.solvers import Anderson, Broyden
from deq_lightning.state import pack

EXACT = Broyden(max_steps=80, rtol=1e-13, history=80)


def gradient(strategy: GradientStrategy, problem: Problem, g: Tensor, solver: Broyden | Anderson = EXACT) -> Tensor:
    return gradients_of(problem, strategy.fixed_point(problem.f, problem.z0, solver)[0], g)


def exact(problem: Problem, g: Tensor) -> Tensor:
    return dense_implicit_gradient(problem, newton(problem.f, problem.z0), g)


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / a.norm() / b.norm()).item()


# The series as long as it must be.


@pytest.mark.parametrize("name", CONTRACTIVE)
def test_a_series_that_ends_by_itself_is_the_dense_solve(name: str) -> None:
    problem = CONTRACTIVE[name]()
    g = random(*pack(problem.z0).shape, seed=3)
    errors = [relative_error(gradient(NPG(k=2000, rtol=rtol), problem, g), exact(problem, g)) for rtol in (1e-3, 1e-10)]
    assert errors[0] < 0.05 and errors[1] < 1e-7


def test_without_an_end_it_is_the_series_of_k_terms() -> None:
    problem, g = tanh(), random(3, 8, seed=3)
    for k in (1, 2, 7):
        one, other = (gradient(NPG(k=k, damping=0.7, rtol=rtol), problem, g) for rtol in (0.0, 1e-300))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_nilpotent_jacobian_needs_as_many_terms_as_it_has_powers() -> None:
    """J³ = 0: g, Jᵀg and Jᵀ²g are the exact answer, and the fourth term shows that nothing is left."""
    shift = torch.diag(torch.ones(2, dtype=torch.float64), 1)
    problem = Problem(LinearCell(shift), random(3, 3).requires_grad_(), torch.zeros(3, 3).double())
    g, strategy = random(3, 3, seed=3), NPG(k=100, damping=1.0, rtol=1e-12)
    assert relative_error(gradient(strategy, problem, g), exact(problem, g)) < 1e-13
    assert strategy.terms.tolist() == [4, 4, 4]


def test_every_sample_has_its_own_end() -> None:
    problem, g, strategy = tanh(), random(3, 8, seed=3), NPG(k=500, rtol=1e-6)
    gradient(strategy, problem, g)
    together = strategy.terms.tolist()
    for sample, terms in enumerate(together):
        gradient(strategy, problem.only([sample]), g[[sample]])
        assert strategy.terms.tolist() == [terms]
    assert len(set(together)) > 1


def test_a_series_without_a_limit_ends_before_it_grows() -> None:
    """Rotations by 1.2: every term is longer than the last, and g alone is left; damped it converges."""
    problem, g = rotation(), random(3, 6, seed=3)
    strategy = NPG(k=100, damping=1.0, rtol=1e-6)
    torch.testing.assert_close(gradient(strategy, problem, g), gradient(JFB(), problem, g))
    assert strategy.terms.max() <= 3
    assert relative_error(gradient(NPG(k=400, damping=0.4, rtol=1e-9), problem, g), exact(problem, g)) < 1e-6


def test_the_terms_are_logged_beside_the_adjoint_solves() -> None:
    from deq_lightning.callbacks.monitor import terms_of

    strategy = NPG(k=500, rtol=1e-6)
    assert terms_of(strategy) == {}
    gradient(strategy, tanh(), random(3, 8, seed=3))
    assert terms_of(strategy)["gradient_terms"] == strategy.terms.float().mean()


# The series cut at random.


def test_its_mean_over_all_draws_is_the_dense_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of further terms, n with probability (1 − p) pⁿ, by the draw in the middle of its interval."""
    problem, g, p = linear(radius=0.5), random(3, 6, seed=3), 0.7
    mean = torch.zeros_like(exact(problem, g))
    for further in range(100):
        drawn = torch.tensor(1 - p ** (further + 0.5), dtype=torch.float64)
        monkeypatch.setattr(roulette.torch, "rand", lambda *args, drawn=drawn, **kwargs: drawn)
        mean += (1 - p) * p**further * gradient(RouletteNPG(k=3, p=p, damping=0.9), problem, g)
    assert relative_error(mean, exact(problem, g)) < 1e-9
    monkeypatch.setattr(roulette.torch, "rand", lambda *args, **kwargs: torch.tensor(0.0))
    one, other = gradient(RouletteNPG(k=3, p=p, damping=0.9), problem, g), gradient(NPG(k=3, damping=0.9), problem, g)
    torch.testing.assert_close(one, other)


def test_nothing_is_drawn_where_nothing_is_differentiated() -> None:
    problem = linear()
    before = torch.get_rng_state()
    with torch.no_grad():
        RouletteNPG().fixed_point(problem.f, problem.z0, Anderson())
    assert torch.equal(torch.get_rng_state(), before)


# The solver's own inverse.


def test_it_is_the_inverse_of_the_solver() -> None:
    problem, g = tanh(), random(3, 8, seed=3)
    solution, memory = Broyden(max_steps=12, rtol=0, history=20).run(problem.f, problem.z0)
    z, _ = SHINE(fallback=1e9).fixed_point(problem.f, problem.z0, Broyden(max_steps=12, rtol=0, history=20))
    w = memory.transposed_inverse(g)
    torch.testing.assert_close(
        gradients_of(problem, z, g), gradients_of(problem, JFB().attach(problem.f, solution.z), w), rtol=1e-12, atol=0
    )


def test_it_is_nearer_than_one_step() -> None:
    problem, g = tanh(), random(3, 8, seed=3)
    few = Broyden(max_steps=12, rtol=0, history=20)
    wanted = exact(problem, g)
    shine, jfb = (cosine(gradient(strategy, problem, g, few), wanted) for strategy in (SHINE(), JFB()))
    assert shine > jfb


@pytest.mark.parametrize("factor", [10.0, float("inf"), float("nan")])
def test_a_sample_whose_estimate_is_too_long_gets_one_step(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, g = tanh(), random(3, 8, seed=3)
    run = Broyden.run

    class Memory:
        def transposed_inverse(self, g: Tensor) -> Tensor:
            return torch.stack([g[0], factor * g[1], 1.5 * g[2]])

    monkeypatch.setattr(Broyden, "run", lambda self, f, z0, scale=None: (run(self, f, z0)[0], Memory()))
    found = gradient(SHINE(), problem, g)
    torch.testing.assert_close(found, gradient(JFB(), problem, g * torch.tensor([[1.0], [1.0], [1.5]])))


def test_it_needs_a_solver_that_builds_an_inverse() -> None:
    problem = tanh()
    with pytest.raises(CombinationError, match="`SHINE` needs `Broyden` as the model's solver, got `Anderson`"):
        SHINE().fixed_point(problem.f, problem.z0, Anderson())
    with torch.no_grad():
        z, _ = SHINE().fixed_point(problem.f, problem.z0, Anderson())
    expected, _ = Implicit().fixed_point(problem.f, problem.z0, Anderson())
    assert torch.equal(z, expected)


@pytest.mark.parametrize("strategy", [SHINE(), Implicit(reuse_inverse=True)], ids=["SHINE", "reuse_inverse"])
def test_samples_that_converge_early_stay_for_the_estimate(strategy: GradientStrategy) -> None:
    """A model's map can be restricted to some samples, and a solver forgets those that leave."""
    net = Weighted(Broyden(max_steps=40, rtol=1e-6, history=40, check_every=1), matrix(4, 0.9))
    net.gradient = strategy
    net.eval()  # where samples leave
    x = random(8, 4, seed=5)
    x[:4] = 0  # whose equilibrium is the origin, where the solve starts
    z, (equilibrium,) = net(x)
    assert equilibrium.solution is not None and (equilibrium.solution.steps[:4] == 1).all()
    z.sum().backward()
    assert net.weight.grad is not None and net.weight.grad.isfinite().all()
