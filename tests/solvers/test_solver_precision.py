"""Half precision, autocast, inference mode, and how often the host waits for the device."""

import pytest
import torch
from support.problems import linear, matrix, random
from torch.utils._python_dispatch import TorchDispatchMode

from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration, Status

SOLVERS = [FixedPointIteration, Anderson, Broyden, GMRES]
HALVES = [torch.float16, torch.bfloat16]
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::is_nonzero",
    "aten::_linalg_check_errors",
}


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for an accelerator."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().split(".")[0] in WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_state(solver, dtype):
    problem = linear(radius=0.6)
    weight, u = problem.cell.weight.detach().to(dtype), problem.u.detach().to(dtype)
    z0 = torch.zeros(3, 6, dtype=dtype)
    solution = solver(max_steps=40, rtol=1e-2).solve(lambda z: z @ weight.T + u, z0)
    assert solution.z.dtype == dtype and solution.residual.dtype == torch.float32
    assert (solution.status == Status.converged).all()
    eye = torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.solve(eye - weight.double(), u.double().T).T
    assert ((solution.z - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.1


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_residual_is_that_of_the_half_precision_answer(solver, dtype):
    """Not that of the wider iterate from which the answer was rounded."""
    weight, u = matrix(6, 0.8).to(dtype), random(3, 6).to(dtype)
    solution = solver(max_steps=12, rtol=0).solve(lambda z: z @ weight.T + u, torch.zeros(3, 6, dtype=dtype))
    z, fz = solution.z.float(), (solution.z @ weight.T + u).float()
    expected = (fz - z).norm(dim=1) / fz.norm(dim=1)
    torch.testing.assert_close(solution.residual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_map_that_answers_in_half_precision(solver, dtype):
    problem = linear(radius=0.6)
    weight, u = problem.cell.weight.detach().float(), problem.u.detach().float()
    solution = solver(max_steps=30, rtol=2e-2).solve(lambda z: (z @ weight.T + u).to(dtype), torch.zeros(3, 6))
    assert solution.z.dtype == torch.float32
    assert (solution.status == Status.converged).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_autocast_does_not_touch_the_algebra_of_the_solver(solver):
    """The map computes in float32; the residual must reach what float32 allows, inside autocast as outside."""
    problem = linear(radius=0.9, dim=16)
    weight, u = problem.cell.weight.detach().float(), problem.u.detach().float()

    def f(z):
        with torch.autocast("cpu", enabled=False):
            return z @ weight.T + u

    z0, subject = problem.z0.float(), solver(max_steps=60, rtol=0)
    outside = subject.solve(f, z0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = subject.solve(f, z0)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(inside.z, outside.z) and torch.equal(inside.residual, outside.residual)
    assert solver is FixedPointIteration or (inside.residual < 3e-6).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_map_runs_under_the_autocast_of_the_caller(solver):
    layer, seen = torch.nn.Linear(4, 4), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solver(max_steps=3, rtol=0).solve(lambda z: seen.append(layer(z).dtype) or layer(z) * 0.5, torch.zeros(2, 4))
    assert seen == [torch.bfloat16] * 3
    seen.clear()
    solver(max_steps=3, rtol=0).solve(lambda z: seen.append(layer(z).dtype) or layer(z) * 0.5, torch.zeros(2, 4))
    assert seen == [torch.float32] * 3


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_parameters_receive_gradients_after_a_solve_under_autocast(solver, used_before):
    """Weights cast without a graph during the solve must not be reused by an evaluation with one."""
    layer = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = layer(torch.ones(2, 4)) if used_before else 0
        z = solver(max_steps=3).solve(lambda z: 0.5 * layer(z), torch.zeros(2, 4)).z
        (layer(z) + before).float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_inference_mode(solver):
    problem = linear()
    expected = solver(max_steps=20, rtol=1e-5).solve(problem.f, problem.z0)
    with torch.inference_mode():
        actual = solver(max_steps=20, rtol=1e-5).solve(problem.f, problem.z0.clone())
    assert torch.equal(actual.z, expected.z)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tolerance_zero_never_waits_for_the_device(solver):
    problem = linear()
    with Waits() as waits:
        solver(max_steps=25, rtol=0).solve(problem.f, problem.z0)
    assert waits.count == 0


@pytest.mark.parametrize("check_every", [1, 3, 4, 100])
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_wait_per_look(solver, check_every):
    problem = linear()
    with Waits() as waits:
        solution = solver(max_steps=25, rtol=1e-14, check_every=check_every).solve(problem.f, problem.z0)
    assert 1 <= waits.count <= -(-solution.evaluations // check_every)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("solver", SOLVERS)
def test_tolerance_zero_never_waits_for_a_real_device(solver):
    weight, u = matrix(6, 0.8).cuda(), random(3, 6).cuda()
    z0 = torch.zeros_like(u)
    solver(max_steps=15, rtol=0).solve(lambda z: z @ weight.T + u, z0)  # libraries wait while they are set up
    torch.cuda.set_sync_debug_mode("error")
    try:
        solution = solver(max_steps=15, rtol=0).solve(lambda z: z @ weight.T + u, z0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(solution.z).all()
