"""Samples that are done leave the solve, where the map can be restricted to the others."""

import pytest
import torch
from support.problems import CONTRACTIVE, matrix, newton, random
from test_solver_samples import CLOSE, SOLVERS

from deq_lightning.models import FPN, MDEQ
from deq_lightning.models.base import CellMap
from deq_lightning.solvers import Anderson, Broyden, FixedPointIteration, Status
from deq_lightning.state import pack


class Counting(CellMap):
    """A map that can be restricted and counts the samples it evaluates, over all its restrictions."""

    counts: list[int]

    def __init__(self, cell, u, counts=None):
        super().__init__(cell, u, separable=True)
        self.counts = [] if counts is None else counts

    def __call__(self, z):
        self.counts.append(len(pack(z)))
        return super().__call__(z)

    def subset(self, rows):
        return Counting(self.cell, super().subset(rows).u, self.counts)


def mixture(batch: int = 16, dim: int = 12):
    """15 easy samples (radius 0.2) and a hard one (0.97): z ↦ Wᵢ z + uᵢ, the matrices part of the injection."""
    weights = torch.stack([matrix(dim, 0.97 if i == 5 else 0.2, seed=i) for i in range(batch)])
    u = (weights, random(batch, dim))
    return (lambda z, u: torch.einsum("bij,bj->bi", u[0], z) + u[1]), u, random(batch, dim, seed=2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_hard_sample_does_not_make_the_easy_ones_pay(solver):
    cell, u, z0 = mixture()
    subject = SOLVERS[solver](max_steps=500, rtol=1e-6)
    f = Counting(cell, u)
    together = subject.solve(f, z0)
    alone = [subject.solve(Counting(cell, (u[0][[i]], u[1][[i]])), z0[[i]]) for i in range(len(z0))]
    assert sum(f.counts) <= 1.5 * sum(solution.evaluations for solution in alone)
    assert together.evaluations == len(f.counts) == max(solution.evaluations for solution in alone)
    assert (together.status == Status.converged).all()


@pytest.mark.parametrize("spoil", [None, 3])
@pytest.mark.parametrize("check_every", [1, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_leaving_samples_change_no_answer(solver, check_every, spoil):
    """Same report as with a map that cannot be restricted, also where a sample diverges."""
    cell, u, z0 = mixture()
    if spoil is not None:
        u[1][spoil] = torch.nan
    subject = SOLVERS[solver](max_steps=40, rtol=1e-5, check_every=check_every)
    f = Counting(cell, u)
    left, stayed = subject.solve(f, z0), subject.solve(lambda z: cell(z, u), z0)
    assert min(f.counts) < 16
    torch.testing.assert_close(left.z, stayed.z, **CLOSE)
    torch.testing.assert_close(left.residual, stayed.residual, rtol=1e-6, atol=1e-14)
    assert torch.equal(left.status, stayed.status) and torch.equal(left.steps, stayed.steps)
    assert left.evaluations == stayed.evaluations


@pytest.mark.parametrize("solver", [FixedPointIteration, Anderson, Broyden])
def test_a_state_of_several_tensors_can_lose_samples(solver):
    """Three of four samples start from their answer."""
    problem = CONTRACTIVE["pyramid"](batch=4)
    exact = newton(problem.f, problem.z0)
    z0 = tuple(torch.cat([start[:1], answer[1:]]) for start, answer in zip(problem.z0, exact, strict=True))
    f = Counting(problem.cell, problem.u.detach())
    solution = solver(max_steps=80, rtol=1e-8).solve(f, z0)
    expected = solver(max_steps=80, rtol=1e-8).solve(problem.f, z0)
    assert f.counts[0] == 4 and set(f.counts[1:]) == {1}
    torch.testing.assert_close(solution.z, expected.z, **CLOSE)
    assert torch.equal(solution.steps, expected.steps)


def test_with_tolerance_zero_nobody_leaves():
    cell, u, z0 = mixture()
    f = Counting(cell, u)
    FixedPointIteration(max_steps=30, rtol=0).solve(f, z0)
    assert set(f.counts) == {16}


def test_a_map_that_refuses_is_left_whole():
    cell, u, z0 = mixture()
    assert CellMap(cell, u, separable=False).subset(torch.tensor([0])) is None
    whole = FixedPointIteration(max_steps=500, rtol=1e-6).solve(CellMap(cell, u, separable=False), z0)
    assert (whole.status == Status.converged).all()


@pytest.mark.parametrize("model", [lambda: MDEQ(in_channels=1, channels=[8, 8], groups=4, dropout=0.5), FPN])
def test_models_restrict_their_map_in_evaluation_only(model):
    torch.manual_seed(0)
    model = model()
    x = torch.randn(3, 1, 28, 28)
    for training in (True, False):
        f = model.train(training)(x)[1][0].f
        assert (f.subset(torch.tensor([2, 0])) is None) == training
    z = model(x)[1][0].z
    rows = torch.tensor([2, 0])
    some = z[rows] if isinstance(z, torch.Tensor) else tuple(part[rows] for part in z)
    torch.testing.assert_close(pack(f.subset(rows)(some)), pack(f(z))[rows], rtol=1e-4, atol=1e-5)
