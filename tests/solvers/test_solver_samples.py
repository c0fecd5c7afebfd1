"""Samples are solved each for itself: batch mates, NaN and divergence."""

import pytest
import torch
from support.problems import CONTRACTIVE, Recorder, linear, tanh

from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration, Status
from deq_lightning.state import pack

SOLVERS = {
    "plain": lambda **kw: FixedPointIteration(**kw),
    "damped": lambda **kw: FixedPointIteration(**{"damping": 0.7, **kw}),
    "anderson": lambda **kw: Anderson(**kw),
    "broyden": lambda **kw: Broyden(**kw),
    "gmres": lambda **kw: GMRES(**kw),
}
CLOSE = {"rtol": 1e-11, "atol": 1e-12}  # the kernels of a batch of another size may round differently


@pytest.mark.parametrize("rtol", [0.0, 1e-4])
@pytest.mark.parametrize("problem", CONTRACTIVE)
@pytest.mark.parametrize("solver", SOLVERS)
def test_batch_mates_do_not_matter(solver, problem, rtol):
    problem = CONTRACTIVE[problem]()
    subject = SOLVERS[solver](max_steps=10, rtol=rtol, check_every=3)
    together = subject.solve(problem.f, problem.z0)
    for sample in range(3):
        alone = problem.only([sample])
        solution = subject.solve(alone.f, alone.z0)
        torch.testing.assert_close(pack(together.z)[[sample]], pack(solution.z), **CLOSE)
        torch.testing.assert_close(together.residual[[sample]], solution.residual, rtol=1e-8, atol=1e-14)
        assert together.status[sample] == solution.status
        assert together.steps[sample] == solution.steps


@pytest.mark.parametrize("rtol", [0.0, 1e-4])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_converged_sample_waits_unchanged_for_a_hard_one(solver, rtol):
    """The hard mate (radius 1.5 against 0.5) makes the batch run several times longer."""
    easy = linear(radius=0.5, batch=1)
    weights = torch.stack([easy.cell.weight.detach(), 3 * easy.cell.weight.detach()])
    u, z0 = easy.u.detach().expand(2, 6), easy.z0.expand(2, 6)

    def pair(z):
        return torch.einsum("bij,bj->bi", weights, z) + u

    subject = SOLVERS[solver](max_steps=12, rtol=rtol)
    together, alone = subject.solve(pair, z0), subject.solve(easy.f, easy.z0)
    torch.testing.assert_close(together.z[:1], alone.z, **CLOSE)
    assert together.steps[0] == alone.steps[0]


@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize("rtol", [0.0, 1e-6])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_nan_sample_is_diverged_and_alone(solver, rtol, after):
    problem = linear()
    recorder = Recorder(problem.f, spoil=[1], after=after)
    subject = SOLVERS[solver](max_steps=40, rtol=rtol)
    solution = subject.solve(recorder, problem.z0)

    assert solution.status[1] == Status.diverged
    assert solution.steps[1] == after + 1
    if after:
        best = recorder.residuals[:after, 1].argmin()
        assert torch.equal(solution.z[1], recorder.points[best][1])
        assert solution.residual[1] == pytest.approx(recorder.residuals[best, 1].item(), rel=1e-9)
    else:
        assert torch.equal(solution.z[1], problem.z0[1])
        assert solution.residual[1] == torch.inf

    clean = problem.only([0, 2])
    without = subject.solve(clean.f, clean.z0)
    torch.testing.assert_close(solution.z[[0, 2]], without.z, rtol=1e-9, atol=1e-11)
    assert torch.equal(solution.status[[0, 2]], without.status)
    assert torch.equal(solution.steps[[0, 2]], without.steps)


@pytest.mark.parametrize("solver", SOLVERS)
def test_nan_after_convergence_does_not_matter(solver):
    problem = linear()
    subject = SOLVERS[solver](max_steps=60, rtol=1e-3)
    clean = subject.solve(problem.f, problem.z0)
    recorder = Recorder(problem.f, spoil=[0], after=int(clean.steps[0]))
    solution = subject.solve(recorder, problem.z0)
    assert torch.equal(solution.z, clean.z) and torch.equal(solution.status, clean.status)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_all_nan_batch_stops_early(solver):
    recorder = Recorder(linear().f, spoil=[0, 1, 2])
    solution = SOLVERS[solver](max_steps=50).solve(recorder, linear().z0)
    assert solution.evaluations == 1
    assert torch.equal(solution.z, linear().z0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_to_infinity(dtype):
    recorder = Recorder(lambda z: z**3 + 2)
    solution = FixedPointIteration(max_steps=50).solve(recorder, torch.full((2, 3), 1.5, dtype=dtype))
    assert (solution.status == Status.diverged).all()
    assert solution.evaluations < 50
    assert torch.isfinite(solution.z).all() and torch.isfinite(solution.residual).all()
    finite = recorder.residuals.nan_to_num(torch.inf, torch.inf)
    torch.testing.assert_close(solution.residual, finite.amin(dim=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_wild_maps_give_finite_answers(solver):
    """Overflow, cancellation and no fixed point at all: whatever is returned is finite and its report is true."""
    torch.manual_seed(0)
    z0 = torch.randn(4, 5, dtype=torch.float64)
    for f in (torch.exp, lambda z: z + 1, lambda z: -3 * z + 1, lambda z: 1e200 * z, lambda z: z**2 + 1):
        solution = SOLVERS[solver](max_steps=25, rtol=1e-9).solve(f, z0)
        assert torch.isfinite(solution.z).all()
        gap = f(solution.z) - solution.z
        residual = gap.norm(dim=1) / f(solution.z).norm(dim=1)
        known = torch.isfinite(solution.residual)
        torch.testing.assert_close(solution.residual[known], residual[known], rtol=1e-6, atol=1e-15)
        assert (solution.residual[solution.status == Status.converged] <= 1e-9).all()


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_one_sample_is_no_special_case(solver):
    """A batch of one must not read a statistic over the batch as stagnation."""
    problem = tanh(radius=0.99, dim=24, batch=1)
    solution = SOLVERS[solver](max_steps=300, rtol=1e-12).solve(problem.f, problem.z0)
    assert solution.status.item() == Status.converged
    exhausted = SOLVERS[solver](max_steps=60, rtol=1e-300).solve(problem.f, problem.z0)
    assert exhausted.evaluations == 60 or exhausted.residual == 0


def test_damping_does_not_scale_the_residual():
    problem = linear()
    recorder = Recorder(problem.f)
    solution = FixedPointIteration(max_steps=1, damping=0.1).solve(recorder, problem.z0)
    torch.testing.assert_close(solution.residual, recorder.residuals[0], rtol=1e-12, atol=0)
    slow = FixedPointIteration(max_steps=2000, rtol=1e-3, damping=0.05).solve(problem.f, problem.z0)
    fz = problem.f(slow.z)
    assert ((fz - slow.z).norm(dim=1) <= 1.001e-3 * fz.norm(dim=1)).all()
    assert ((fz - slow.z).norm(dim=1) > 0.8e-3 * fz.norm(dim=1)).all()
