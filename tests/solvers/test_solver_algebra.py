"""Each solver against a dense textbook version of its own method, and the corners where such methods break."""

import pytest
import torch
from support.problems import AFFINE, BATCH, CONTRACTIVE, Recorder, conv, linear, matrix, newton, random, rotations, tanh

from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration, Status
from deq_lightning.state import pack


def trace_of(solver, f, z0) -> torch.Tensor:
    """Return the (evaluations, batch, dim) points at which the solver evaluates f."""
    recorder = Recorder(f)
    solver.solve(recorder, z0)
    return torch.stack(recorder.points)


def buffers(memory) -> list[torch.Tensor]:
    return [value for value in vars(memory).values() if isinstance(value, torch.Tensor) and value.ndim == 3]


# --- fixed-point iteration


@pytest.mark.parametrize("damping", [1.0, 0.3])
def test_fixed_point_iteration_is_the_damped_loop(damping):
    problem = tanh()
    z, expected = problem.z0, []
    for _ in range(6):
        expected.append(z)
        z = (1 - damping) * z + damping * problem.f(z).detach()
    actual = trace_of(FixedPointIteration(6, 0, damping=damping), problem.f, problem.z0)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-12, atol=1e-14)


# --- Anderson


def textbook_anderson(f, z, steps: int, history: int, damping: float) -> torch.Tensor:
    """Walker and Ni's unconstrained least-squares form for one sample: differences, no normal equations, no ridge."""
    points, gaps, trace = [], [], []
    for _ in range(steps):
        trace.append(z)
        points, gaps = [*points, z][-history:], [*gaps, f(z) - z][-history:]
        z = points[-1] + damping * gaps[-1]
        if len(points) > 1:
            d_points = torch.stack(points).diff(dim=0).T
            d_gaps = torch.stack(gaps).diff(dim=0).T
            gamma = torch.linalg.lstsq(d_gaps, gaps[-1]).solution
            z = z - (d_points + damping * d_gaps) @ gamma
    return torch.stack(trace)


@pytest.mark.parametrize(("history", "damping"), [(1, 0.6), (2, 1.0), (4, 1.0), (4, 0.7), (20, 1.0)])
def test_anderson_equals_the_least_squares_form(history, damping):
    problem = tanh(dim=16)
    actual = trace_of(Anderson(10, 0, history=history, damping=damping, ridge=0), problem.f, problem.z0)
    for sample in range(BATCH):
        u = problem.u[sample].detach()
        expected = textbook_anderson(
            lambda z, u=u: problem.cell(z, u).detach(), problem.z0[sample], 10, history, damping
        )
        torch.testing.assert_close(actual[:, sample], expected, rtol=1e-5, atol=1e-6)


def test_anderson_does_not_depend_on_the_units_of_the_state():
    problem = tanh()
    big = Anderson(15, 0).solve(problem.f, problem.z0)
    for scale in (1e-3, 1e-6, 1e6):
        small = Anderson(15, 0).solve(lambda z, s=scale: s * problem.f(z / s), problem.z0 * scale)
        torch.testing.assert_close(small.residual, big.residual, rtol=1e-2, atol=1e-13)
        torch.testing.assert_close(small.z / scale, big.z, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("dtype", "floor"), [(torch.float64, 2e-15), (torch.float32, 1e-6)])
@pytest.mark.parametrize("solver", [Anderson, Broyden])
def test_acceleration_does_not_fade_near_convergence(solver, dtype, floor):
    problem = tanh(radius=0.98, dim=24)
    cell, u = problem.cell.to(dtype), problem.u.detach().to(dtype)
    solution = solver(max_steps=80, rtol=0).solve(lambda z: cell(z, u), problem.z0.to(dtype))
    assert (solution.residual < floor).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_anderson_survives_a_singular_system(dtype):
    """A constant map, equal residuals, a zero map: no weights exist or they are not unique."""
    z0 = random(BATCH, 5).to(dtype)
    constant = Anderson(8, 0).solve(lambda z: torch.full_like(z, 2.0), z0)
    assert (constant.z == 2).all() and (constant.residual == 0).all()
    drift = Recorder(lambda z: z + 1)
    solution = Anderson(12, 0, ridge=0).solve(drift, z0)
    assert torch.isfinite(torch.stack(drift.points)).all()
    assert (solution.status == Status.max_steps).all()
    assert (Anderson(6, 0).solve(torch.zeros_like, z0).z == 0).all()


@pytest.mark.parametrize("max_steps", [3, 1000])
def test_anderson_memory_is_bounded(max_steps):
    memory = Anderson(max_steps, history=4).start(torch.zeros(2, 7))
    assert {buffer.shape[1] for buffer in buffers(memory)} == {min(4, max_steps)}


# --- Broyden


def textbook_broyden(f, z, steps: int, history: int) -> torch.Tensor:
    """Dense good Broyden for one sample: H = -I + pairs; when they are full, only the newest is kept."""
    eye = torch.eye(len(z), dtype=z.dtype)
    pairs: list[torch.Tensor] = []
    g, trace = f(z) - z, [z]
    for _ in range(steps - 1):
        inverse = -eye + sum(pairs, torch.zeros_like(eye))
        step = -inverse @ g
        z = z + step
        trace.append(z)
        change = f(z) - z - g
        g = g + change
        if len(pairs) == history:
            pairs, inverse = [], -eye
        error = step - inverse @ change
        pairs.append(torch.outer(error / (step @ inverse @ change), step @ inverse))
        pairs = pairs[-history:]
    return torch.stack(trace)


@pytest.mark.parametrize("history", [20, 8, 3, 1])
@pytest.mark.parametrize("problem", ["linear", "tanh"])
def test_broyden_equals_the_dense_inverse_update(problem, history):
    problem = CONTRACTIVE[problem](radius=0.7, dim=12)
    actual = trace_of(Broyden(10, 0, history=history), problem.f, problem.z0)
    for sample in range(BATCH):
        u = problem.u[sample].detach()
        expected = textbook_broyden(lambda z, u=u: problem.cell(z, u).detach(), problem.z0[sample], 10, history)
        torch.testing.assert_close(actual[:, sample], expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("max_steps", [3, 1000])
def test_broyden_memory_is_bounded(max_steps):
    memory = Broyden(max_steps, history=4).start(torch.zeros(2, 7))
    assert {buffer.shape[1] for buffer in buffers(memory)} == {min(4, max_steps - 1)}


@pytest.mark.parametrize("solver", [Anderson, Broyden])
def test_a_short_history_does_not_run_away(solver):
    """The values of this cell are bounded by its normalisation, so nothing excuses iterates that grow without bound."""
    problem = conv(batch=8)
    torch.nn.init.normal_(problem.cell.conv2.weight, std=0.8, generator=torch.Generator().manual_seed(0))
    recorder = Recorder(problem.f)
    solution = solver(max_steps=200, rtol=1e-6, history=5).solve(recorder, problem.z0)
    assert torch.stack(recorder.points).norm(dim=2).max() < 1e3
    assert (solution.status == Status.converged).all()


# --- GMRES


def krylov_minimum(a: torch.Tensor, r0: torch.Tensor, dim: int) -> torch.Tensor:
    """Return min over x in span(r0, A r0, ... A^(dim-1) r0) of the norm of r0 - A x, by orthonormal least squares."""
    basis = [r0 / r0.norm()]
    while len(basis) < dim:
        v = a @ basis[-1]
        for _ in range(2):
            for b in basis:
                v = v - (b @ v) * b
        basis.append(v / v.norm())
    images = a @ torch.stack(basis, dim=1)
    return (r0 - images @ torch.linalg.lstsq(images, r0).solution).norm()


@pytest.mark.parametrize("problem", AFFINE)
def test_gmres_minimises_over_the_krylov_space(problem):
    problem = AFFINE[problem](dim=10)
    a = torch.eye(10, dtype=torch.float64) - problem.cell.weight.detach()
    memory = GMRES(max_steps=20).start(problem.z0)
    z, r0 = problem.z0, problem.f(problem.z0).detach() - problem.z0
    for dim in range(7):
        fz = problem.f(z).detach()
        z = memory(z, fz, fz - z)
        point = memory.point
        true_residual = problem.f(point).detach() - point
        torch.testing.assert_close(memory.residual, true_residual, rtol=1e-9, atol=1e-12)
        if dim:
            expected = torch.stack([krylov_minimum(a, r, dim) for r in r0])
            torch.testing.assert_close(true_residual.norm(dim=1), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("problem", AFFINE)
def test_gmres_is_finished_after_dim_directions(problem):
    problem = AFFINE[problem](dim=6)
    solution = GMRES(max_steps=30, rtol=1e-11, check_every=1).solve(problem.f, problem.z0)
    assert solution.evaluations <= 6 + 2


STAGNANT = {
    "quarter turn": lambda: torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double(),
    "three quarter turns": lambda: torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * 3).double(),
    "quarter turns of several sizes": lambda: torch.block_diag(
        *[s * torch.tensor([[0.0, -1.0], [1.0, 0.0]]) for s in (1.0, 2.0, 5.0)]
    ).double(),
    "cyclic shift": lambda: torch.eye(6).roll(1, 0).double(),
}


@pytest.mark.parametrize("start", ["unit", "random"])
@pytest.mark.parametrize("system", STAGNANT)
def test_gmres_survives_stagnation(system, start):
    """Systems (I - J) x = b whose residual does not fall for a while (shift: not before the last direction)."""
    a = STAGNANT[system]()
    dim = len(a)
    b = torch.eye(dim, dtype=a.dtype)[:2] if start == "unit" else random(2, dim)
    jacobian = torch.eye(dim, dtype=a.dtype) - a
    solution = GMRES(max_steps=dim + 3, rtol=1e-11, check_every=1).solve(lambda x: x @ jacobian.T + b, 0 * b)
    assert (solution.status == Status.converged).all()
    torch.testing.assert_close(solution.z, torch.linalg.solve(a, b.T).T, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("history", [2, 4])
def test_gmres_with_a_short_history_still_converges(history):
    problem = linear(radius=0.9, dim=16)
    solution = GMRES(max_steps=300, rtol=1e-10, history=history).solve(problem.f, problem.z0)
    assert (solution.status == Status.converged).all()


def test_gmres_handles_a_strong_non_normal_system():
    jacobian = 3 * matrix(12, 0.9, seed=4) + rotations(12, 2.0)
    b = random(BATCH, 12)
    solution = GMRES(max_steps=30, rtol=1e-9, history=20).solve(lambda x: x @ jacobian.T + b, b)
    expected = torch.linalg.solve(torch.eye(12, dtype=b.dtype) - jacobian, b.T).T
    torch.testing.assert_close(solution.z, expected, rtol=1e-6, atol=1e-6)


def test_gmres_on_a_map_that_is_not_affine_tells_the_truth():
    problem = tanh()
    solution = GMRES(max_steps=20, rtol=1e-6).solve(problem.f, problem.z0)
    z, fz = solution.z, problem.f(solution.z).detach()
    torch.testing.assert_close(solution.residual, (fz - z).norm(dim=1) / fz.norm(dim=1), rtol=1e-8, atol=1e-16)
    close = solution.status == Status.converged
    distance = (pack(z) - pack(newton(problem.f, problem.z0))).norm(dim=1)
    assert (distance[close] < 1e-4).all()
