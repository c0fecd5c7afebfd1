"""The iteration that is walked back, against backpropagation through every step of it and dense solves."""

import pytest
import torch
from support.problems import (
    CONTRACTIVE,
    Problem,
    Recorder,
    dense_implicit_gradient,
    gradients_of,
    linear,
    newton,
    random,
    relative_error,
    tanh,
)
from support.weighted import Weighted
from torch import Tensor

from deq_lightning import Status
from deq_lightning.gradients import Reversible
from deq_lightning.solvers import Anderson
from deq_lightning.state import mix, pack


def unrolled(problem: Problem, steps: int, beta: float) -> object:
    """The coupled iteration as it is written, with its whole graph."""
    y = z = problem.z0
    for _ in range(steps):
        y = mix(y, problem.f(z), beta)
        z = mix(z, problem.f(y), beta)
    return z


@pytest.mark.parametrize("name", CONTRACTIVE)
@pytest.mark.parametrize(("steps", "beta"), [(1, 0.8), (4, 0.8), (8, 0.5), (40, 0.8)])
def test_it_is_backpropagation_through_every_step(name: str, steps: int, beta: float) -> None:
    problem = CONTRACTIVE[name]()
    z, _ = Reversible(steps=steps, beta=beta).fixed_point(problem.f, problem.z0, Anderson())
    expected = unrolled(problem, steps, beta)
    torch.testing.assert_close(pack(z), pack(expected), rtol=1e-12, atol=1e-12)
    g = random(*pack(z).shape, seed=3)
    assert relative_error(gradients_of(problem, z, g), gradients_of(problem, expected, g)) < 1e-7


@pytest.mark.parametrize("name", CONTRACTIVE)
def test_of_many_steps_it_is_the_dense_solve(name: str) -> None:
    problem = CONTRACTIVE[name]()
    z, solution = Reversible(steps=200, beta=0.5).fixed_point(problem.f, problem.z0, Anderson(rtol=1e-8))
    g = random(*pack(z).shape, seed=3)
    exact = dense_implicit_gradient(problem, newton(problem.f, problem.z0), g)
    assert relative_error(gradients_of(problem, z, g), exact) < 1e-6
    assert (solution.status == Status.converged).all() and solution.residual.max() < 1e-8


@pytest.mark.parametrize("steps", [8, 64])
def test_in_single_precision_rounding_does_not_grow(steps: int) -> None:
    """Without double sums and stored states the error would be 10⁹ after 32 steps."""
    problem = linear()
    expected = gradients_of(problem, unrolled(problem, steps, 0.8), random(3, 6, seed=3))
    single = Problem(problem.cell.float(), problem.u.detach().float().requires_grad_(), problem.z0.float())
    z, _ = Reversible(steps=steps).fixed_point(single.f, single.z0, Anderson())
    assert z.dtype == torch.float32
    assert relative_error(gradients_of(single, z, random(3, 6, seed=3).float()).double(), expected) < 2e-6


def test_evaluations_and_stored_states() -> None:
    """Two evaluations a step in each direction, one to see what f depends on and one for the report."""
    problem, strategy = tanh(), Reversible(steps=20, beta=0.8)
    recorder = Recorder(problem.f)
    z, solution = strategy.fixed_point(recorder, problem.z0, Anderson())
    assert recorder.calls == 42 and solution.evaluations == 41 and (solution.steps == 41).all()
    assert strategy.stride == 5 and Reversible(beta=0.5).stride == 12
    pack(z).sum().backward()
    assert recorder.calls == 82


def test_each_parameter_sees_one_gradient_and_second_derivatives_are_refused() -> None:
    problem, fired = tanh(), []
    problem.cell.weight.register_hook(lambda grad: fired.append(grad))
    z, _ = Reversible().fixed_point(problem.f, problem.z0, Anderson())
    z.sum().backward(retain_graph=True)
    assert len(fired) == 1
    (first,) = torch.autograd.grad(z.sin().sum(), problem.cell.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


def test_a_parameter_of_cell_and_injection_gets_both_parts() -> None:
    class Tied(Weighted):
        def inject(self, x: Tensor) -> Tensor:
            return x @ self.weight

    net, x, g = Tied(Anderson(), 0.3 * random(4, 4)), random(3, 4, seed=5), random(3, 4, seed=6)
    net.gradient = Reversible(steps=6)
    (found,) = torch.autograd.grad(net(x)[0], net.weight, g)
    y = z = torch.zeros(3, 4).double()
    for _ in range(6):
        y = torch.lerp(y, torch.tanh(z @ net.weight + x @ net.weight), 0.8)
        z = torch.lerp(z, torch.tanh(y @ net.weight + x @ net.weight), 0.8)
    (expected,) = torch.autograd.grad(z, net.weight, g)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_under_transforms_the_numbers_are_the_same() -> None:
    problem = tanh()

    def loss(u: Tensor) -> Tensor:
        return Reversible(steps=4).fixed_point(lambda z: problem.cell(z, u), problem.z0, Anderson())[0].sin().sum()

    u = problem.u.detach()
    found = torch.func.grad(loss)(u)
    (expected,) = torch.autograd.grad(unrolled(problem, 4, 0.8).sin().sum(), problem.u)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
