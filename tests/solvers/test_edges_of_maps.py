"""Maps as strangers bring them; `pytest -k edges` runs this and its siblings."""

import numpy as np
import pytest
import torch
from support.problems import linear, matrix, random, tanh
from test_solver_subsets import Counting, mixture
from torch import nn

from deq_lightning.gradients import JFB, NPG, UPG, Implicit, Unrolled
from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration, Partition, Solver, Status

SOLVERS = {
    "plain": FixedPointIteration,
    "damped": lambda **kw: FixedPointIteration(**{"damping": 0.7, **kw}),
    "anderson": Anderson,
    "broyden": Broyden,
    "gmres": GMRES,
}
GENERAL = [name for name in SOLVERS if name != "gmres"]  # for maps that are not affine
every_solver = pytest.mark.parametrize("solver", SOLVERS)
general_solver = pytest.mark.parametrize("solver", GENERAL)


def same(actual, expected) -> bool:
    return all(torch.equal(getattr(actual, name), getattr(expected, name)) for name in ("residual", "steps", "status"))


# --- maps that write

WRITERS = {
    "relu": lambda z: nn.functional.relu(z, inplace=True),
    "copy": lambda z: z.copy_(torch.tanh(z)),
    "item": lambda z: z.__setitem__((slice(None), 0), 0.0) or z,
    "detached": lambda z: z.detach().mul_(0.5),
}
MODES = {"training": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
WRITES = (
    "`f` must not write to its argument, which solvers still need. Use `inplace=False` in its layers, "
    "or begin it with `z = z.clone()`."
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("writer", WRITERS)
@every_solver
def test_edges_a_map_that_writes_to_its_argument_is_refused(solver, writer, mode):
    layer = nn.Linear(6, 6)
    with MODES[mode](), pytest.raises(ValueError) as caught:
        SOLVERS[solver]().solve(lambda z: layer(WRITERS[writer](z)), torch.zeros(3, 6))
    assert str(caught.value) == WRITES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_edges_writing_to_one_part_of_a_state_is_refused(dtype):
    z0 = {"a": torch.zeros(3, 6), "b": torch.zeros(3, 2, dtype=dtype)}
    with pytest.raises(ValueError, match="must not write to its argument"):
        Anderson().solve(lambda z: {"a": z["a"] + 1, "b": z["b"].mul_(0.5)}, z0)


def test_edges_writing_is_seen_under_a_transform_or_does_no_harm():
    weight = random(6, 6) / 10

    def solve(u, inplace):
        return Anderson(20, 0).solve(lambda z: nn.functional.relu(z, inplace) @ weight + u, torch.zeros_like(u)).z

    u = random(3, 2, 6, seed=2)
    with pytest.raises(ValueError, match="must not write to its argument"):
        torch.func.jvp(lambda u: solve(u, True), (u[0],), (u[0],))
    torch.testing.assert_close(
        torch.func.vmap(lambda u: solve(u, True))(u), torch.func.vmap(lambda u: solve(u, False))(u)
    )


@pytest.mark.parametrize("mode", ["no_grad", "inference"])
@pytest.mark.parametrize("start", ["zeros", "its buffer"])
@every_solver
def test_edges_a_map_may_return_the_same_memory_at_every_call(solver, start, mode):
    problem = linear(radius=0.6)
    weight, u = problem.cell.weight.detach(), problem.u.detach()
    subject = SOLVERS[solver](max_steps=60, rtol=1e-8)
    with MODES[mode]():
        buffer = torch.zeros_like(u)
        expected = subject.solve(lambda z: torch.addmm(u, z, weight.T), torch.zeros_like(u))
        z0 = buffer if start == "its buffer" else torch.zeros_like(u)
        actual = subject.solve(lambda z: torch.addmm(u, z, weight.T, out=buffer), z0)
        assert torch.equal(actual.z, expected.z) and same(actual, expected)
        assert (actual.status == Status.converged).all()


def test_edges_a_solver_of_ones_own_may_hand_back_what_the_map_returned():
    class Picard(Solver):
        def start(self, z):
            return lambda z, fz, gap: fz

    buffer, u = torch.zeros(3, 6), random(3, 6).float()
    with torch.no_grad():
        solution = Picard(40, 1e-6).solve(lambda z: torch.add(u, z, alpha=-0.5, out=buffer), torch.zeros(3, 6))
    torch.testing.assert_close(solution.z, u / 1.5)


@pytest.mark.parametrize("gradient", [UPG(k=4, damping=1.0), JFB(), NPG(), Implicit(), Unrolled(unroll_steps=40)])
def test_edges_no_strategy_keeps_memory_of_the_map(gradient):
    weight, u, buffer = matrix(6, 0.5), random(3, 6), torch.zeros(3, 6, dtype=torch.float64)

    def f(z):
        return torch.addmm(u, z, weight.T, out=buffer)

    with torch.no_grad():
        z, _ = gradient.fixed_point(f, torch.zeros_like(u), FixedPointIteration(60, 1e-12))
    expected = torch.linalg.solve(torch.eye(6, dtype=u.dtype) - weight, u.T).T
    buffer.fill_(7.0)
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)


# --- batches of samples that are evaluated together

INDEX = torch.tensor([0] * 4 + [1] * 5 + [2] * 3)


class Graphs:
    """Three contractions in one state (1, 12, 5), of which one breaks at an evaluation."""

    def __init__(self, value: float = 0.0, after: int = 10**6, seed: int = 0) -> None:
        self.partition = Partition(INDEX, 3)
        self.weights = torch.stack([matrix(5, 0.7, seed=seed + number) for number in range(3)])
        self.u = random(12, 5, seed=seed)
        self.value, self.after, self.calls = value, after, 0

    def __call__(self, z):
        self.calls += 1
        fz = torch.tanh(torch.einsum("nij,nj->ni", self.weights[INDEX], z[0]) + self.u)[None]
        return fz.masked_fill((INDEX == 1)[None, :, None], self.value) if self.calls > self.after else fz


@pytest.mark.parametrize("after", [0, 1, 2, 5])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])
@every_solver
def test_edges_a_broken_graph_leaves_its_mates_alone(solver, value, after):
    z0 = torch.zeros(1, 12, 5, dtype=torch.float64)
    subject = SOLVERS[solver](max_steps=100, rtol=1e-6)
    clean, broken = subject.solve(Graphs(), z0), subject.solve(Graphs(value, after), z0)
    mates = [0, 2]
    assert (broken.status[mates] == Status.converged).all() and broken.residual[mates].max() <= 1e-6
    assert broken.status[1] == Status.diverged
    assert broken.evaluations <= clean.evaluations + 4
    rows = INDEX != 1
    torch.testing.assert_close(broken.z[:, rows], clean.z[:, rows], rtol=1e-5, atol=1e-5)


@general_solver
def test_edges_the_parts_of_a_partitioned_state_keep_their_samples(solver):
    """A dict of two halves of the columns is the state of all columns."""
    whole = Graphs()

    class Halves(Graphs):
        def __call__(self, z):
            fz = super().__call__(torch.cat([z["left"], z["right"]], dim=2))
            return {"left": fz[:, :, :2], "right": fz[:, :, 2:]}

    z0 = torch.zeros(1, 12, 5, dtype=torch.float64)
    subject = SOLVERS[solver](max_steps=60, rtol=1e-8)
    expected = subject.solve(whole, z0)
    actual = subject.solve(Halves(), {"left": z0[:, :, :2], "right": z0[:, :, 2:]})
    joined = torch.cat([actual.z["left"], actual.z["right"]], dim=2)
    torch.testing.assert_close(joined, expected.z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(actual.residual, expected.residual, rtol=1e-3, atol=0)
    assert torch.equal(actual.steps, expected.steps)


def test_edges_a_partition_of_other_rows_is_refused():
    message = r"With a `partition` of 12 rows a state must be \(1, 12, ...\), got \[1, 11, 5\]."
    with pytest.raises(ValueError, match=message):
        Anderson().solve(Graphs(), torch.zeros(1, 11, 5, dtype=torch.float64))


# --- a fixed point at the origin

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges_an_iteration_to_the_origin_ends_there(dtype):
    """At half the distance a step, ε of the start is reached after log2(1 / ε) steps more."""
    solution = FixedPointIteration(60, 1e-3, check_every=1).solve(lambda z: 0.5 * z, torch.ones(2, 4, dtype=dtype))
    steps = {torch.float32: 25, torch.float64: 54}[dtype]  # 2 ** -24 is half of ε, as is 2 ** -53
    assert (solution.status == Status.converged).all() and solution.evaluations == steps - 1
    assert (solution.z.norm(dim=1) <= 2.1 * torch.finfo(dtype).eps).all()
    assert (solution.residual <= 1e-3).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rtol", [0.0, 1e-3])
def test_edges_of_equal_residuals_the_closest_iterate_is_best(rtol, dtype):
    towards = FixedPointIteration(10, rtol).solve(lambda z: 0.5 * z, torch.ones(2, 4, dtype=dtype))
    assert (towards.z == 0.5**9).all() and (towards.residual == 1).all()
    assert (towards.status == Status.max_steps).all()
    away = FixedPointIteration(10, rtol).solve(lambda z: 2 * z, torch.ones(2, 4, dtype=dtype))
    assert (away.z == 1).all() and (away.residual == 0.5).all()
    turn = 0.9 * torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=dtype)  # the residual is constant but for rounding
    turned = FixedPointIteration(30, rtol).solve(lambda z: z @ turn.T, random(50, 2).to(dtype))
    torch.testing.assert_close(turned.z.norm(dim=1), 0.9**29 * random(50, 2).to(dtype).norm(dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
@every_solver
def test_edges_dead_and_blank_states_converge(solver, dtype):
    subject = SOLVERS[solver](max_steps=250, rtol=1e-3)
    for f in (lambda z: 0.5 * z, lambda z: torch.relu(z - 2), lambda z: 0 * z):
        solution = subject.solve(f, torch.ones(2, 4, dtype=dtype))
        assert (solution.status == Status.converged).all()
        assert solution.z.abs().max() < 1e-6
    blank = subject.solve(lambda z: 0.5 * z, torch.zeros(2, 4, dtype=dtype))
    assert blank.evaluations == 1 and (blank.residual == 0).all()


@general_solver
def test_edges_a_small_answer_is_not_taken_for_the_origin(solver):
    """Five figures below its start it still meets the relative tolerance."""
    for answer in (1e-4, 1e-5):
        f = lambda z, u=answer / 2: 0.5 * z + u  # noqa: E731
        solution = SOLVERS[solver](max_steps=60, rtol=1e-4).solve(f, torch.ones(2, 4))
        assert (solution.status == Status.converged).all()
        torch.testing.assert_close(solution.z, torch.full((2, 4), answer), rtol=3e-4, atol=0)


def test_edges_samples_on_their_way_to_the_origin_may_leave_the_solve():
    cell, (weights, u), z0 = mixture()
    u[3], weights[3] = 0.0, 0.5 * torch.eye(12, dtype=u.dtype)
    f = Counting(cell, (weights, u))
    left = FixedPointIteration(500, 1e-6).solve(f, z0)
    stayed = FixedPointIteration(500, 1e-6).solve(lambda z: cell(z, (weights, u)), z0)
    assert min(f.counts) < 16
    torch.testing.assert_close(left.z, stayed.z, rtol=1e-11, atol=1e-30)
    assert torch.equal(left.steps, stayed.steps) and torch.equal(left.status, stayed.status)
    assert left.status[3] == Status.converged and left.z[3].norm() < 1e-14


# --- small states and wide answers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", [0.99, 0.5, -0.9, 1.5])
def test_edges_acceleration_is_exact_on_scalars(slope, dtype):
    """A secant meets a line after two evaluations, whatever the start."""
    z0 = (random(500, 1) * torch.logspace(-3, 3, 500)[:, None]).to(dtype)
    for state in (z0, z0.expand(500, 64)):
        solution = Anderson(200, 1e-5, check_every=1).solve(lambda z: slope * z + 1, state)
        assert (solution.status == Status.converged).all() and solution.steps.max() <= 5
        torch.testing.assert_close(solution.z, torch.full_like(state, 1 / (1 - slope)), rtol=1e-2, atol=0)


@every_solver
def test_edges_a_map_may_answer_in_a_wider_dtype(solver):
    solution = SOLVERS[solver](max_steps=60, rtol=1e-5).solve(
        lambda z: torch.from_numpy(0.5 * z.numpy().astype(np.float64) + 1), torch.zeros(2, 4)
    )
    assert solution.z.dtype == torch.float32 and (solution.status == Status.converged).all()
    torch.testing.assert_close(solution.z, torch.full((2, 4), 2.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("f", "got"), [(lambda z: z.long(), "int64"), (lambda z: z > 0, "bool"), (lambda z: z * 1j, "complex64")]
)
@every_solver
def test_edges_a_map_must_answer_in_the_kind_of_its_argument(solver, f, got):
    message = f"`f` must return numbers of the kind of its argument: torch.float32, got torch.{got}."
    with pytest.raises(ValueError) as caught:
        SOLVERS[solver]().solve(f, torch.ones(2, 4))
    assert str(caught.value) == message


def test_edges_ordinary_problems_are_decided_by_the_relative_test():
    problem = tanh()
    solution = FixedPointIteration(200, 1e-6, check_every=1).solve(problem.f, problem.z0)
    gap = problem.f(solution.z) - solution.z
    assert torch.equal(solution.residual, gap.detach().norm(dim=1) / problem.f(solution.z).detach().norm(dim=1))


@pytest.mark.parametrize("solver", [FixedPointIteration, Anderson, Broyden])
def test_edges_samples_that_depend_on_each_other_stop_together(solver):
    """With the tolerance met by the worst of them, at the fixed point of the dense system of all."""
    torch.manual_seed(0)
    rows, width = 4, 3
    dense = torch.randn(rows * width, rows * width).double()
    dense *= 0.5 / torch.linalg.matrix_norm(dense, 2)
    b = torch.randn(rows * width).double() * torch.tensor([1.0, 1e-3, 1.0, 10.0]).double().repeat_interleave(width)

    class Coupled:
        partition = Partition(torch.arange(rows), rows, together=True)

        def __call__(self, z):
            return (z.reshape(-1) @ dense.T + b).view(1, rows, width)

    solution = solver(80, rtol=1e-8, check_every=1).solve(Coupled(), torch.zeros(1, rows, width).double())
    exact = torch.linalg.solve(torch.eye(rows * width).double() - dense, b).view(1, rows, width)
    assert torch.allclose(solution.z, exact, rtol=1e-6, atol=1e-10)
    assert len(set(solution.steps.tolist())) == 1 and (solution.status == Status.converged).all()
    fz = Coupled()(solution.z)
    residual = (fz - solution.z)[0].norm(dim=1) / fz[0].norm(dim=1)
    assert torch.allclose(solution.residual, residual) and residual.max() <= 1e-8
