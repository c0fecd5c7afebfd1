"""The contract that every solver keeps: the answer, what is said of it, and what it cost."""

import copy
import inspect
import pickle

import pytest
import torch
from support.problems import AFFINE, CONTRACTIVE, Problem, Recorder, linear, newton, pyramid, tanh

from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration, Solver, Status
from deq_lightning.state import pack

GENERAL = {
    "plain": lambda **kw: FixedPointIteration(**kw),
    "damped": lambda **kw: FixedPointIteration(**{"damping": 0.7, **kw}),
    "anderson": lambda **kw: Anderson(**kw),
    "anderson-damped": lambda **kw: Anderson(**{"damping": 0.8, **kw}),
    "broyden": lambda **kw: Broyden(**kw),
}
EVERY = {**GENERAL, "gmres": lambda **kw: GMRES(**kw)}
CLASSES = [FixedPointIteration, Anderson, Broyden, GMRES]
PAIRS = [(solver, problem) for solver in GENERAL for problem in CONTRACTIVE]
PAIRS += [("gmres", "linear"), ("gmres", "rotation"), ("anderson", "rotation"), ("broyden", "rotation")]
PROBLEMS = {**CONTRACTIVE, **AFFINE}


def error(z, expected) -> float:
    return ((pack(z) - pack(expected)).norm(dim=1) / pack(expected).norm(dim=1)).max().item()


@pytest.mark.parametrize(("solver", "problem"), PAIRS)
def test_finds_the_fixed_point(solver, problem):
    problem = PROBLEMS[problem]()
    solution = EVERY[solver](max_steps=400, rtol=1e-11).solve(problem.f, problem.z0)
    assert (solution.status == Status.converged).all()
    assert (solution.residual <= 1e-11).all()
    assert error(solution.z, newton(problem.f, problem.z0)) < 1e-9
    assert not pack(solution.z).requires_grad


def test_solvers_agree_with_a_direct_solve():
    problem = linear(radius=0.95)
    weight = problem.cell.weight.detach()
    expected = torch.linalg.solve(torch.eye(6, dtype=weight.dtype) - weight, problem.u.detach().T).T
    for make in EVERY.values():
        assert error(make(max_steps=1000, rtol=1e-13).solve(problem.f, problem.z0).z, expected) < 1e-10


@pytest.mark.parametrize("max_steps", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("problem", CONTRACTIVE)
@pytest.mark.parametrize("solver", GENERAL)
def test_the_report_is_true(solver, problem, max_steps):
    """Residual, steps, evaluations and the choice of the iterate, against the recorded evaluations."""
    problem = CONTRACTIVE[problem]()
    rtol = 1e-2
    recorder = Recorder(problem.f)
    solution = EVERY[solver](max_steps=max_steps, rtol=rtol, check_every=2).solve(recorder, problem.z0)

    z, fz = pack(solution.z), pack(problem.f(solution.z)).detach()
    torch.testing.assert_close(solution.residual, (fz - z).norm(dim=1) / fz.norm(dim=1), rtol=1e-9, atol=0)
    assert solution.evaluations == recorder.calls <= max_steps

    for sample, residuals in enumerate(recorder.residuals.T):
        met = (residuals <= rtol).nonzero().flatten()
        chosen = met[0] if len(met) else residuals.argmin()
        assert torch.equal(z[sample], recorder.points[chosen][sample])
        assert solution.steps[sample] == (met[0] + 1 if len(met) else recorder.calls)
        assert solution.status[sample] == (Status.converged if len(met) else Status.max_steps)


@pytest.mark.parametrize("solver", EVERY)
def test_tolerance_zero_spends_the_whole_budget(solver):
    recorder = Recorder(linear().f)
    solution = EVERY[solver](max_steps=9, rtol=0).solve(recorder, linear().z0)
    assert solution.evaluations == recorder.calls == 9
    assert solution.steps.tolist() == [9, 9, 9]
    assert (solution.status == Status.max_steps).all()
    torch.testing.assert_close(solution.residual, recorder.residuals.amin(dim=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("solver", EVERY)
def test_absolute_tolerance(solver):
    problem = linear()
    solution = EVERY[solver](max_steps=300, rtol=0, atol=1e-4).solve(problem.f, problem.z0)
    assert (solution.status == Status.converged).all()
    assert ((problem.f(solution.z) - solution.z).norm(dim=1) <= 1e-4).all()
    assert (solution.steps < 300).all()


@pytest.mark.parametrize("solver", EVERY)
def test_stops_at_the_first_look_after_the_last_sample_met_the_tolerance(solver):
    problem = linear()
    for check_every in (1, 3, 4):
        solution = EVERY[solver](max_steps=200, rtol=1e-6, check_every=check_every).solve(problem.f, problem.z0)
        slowest = solution.steps.max().item()
        assert slowest <= solution.evaluations < slowest + check_every
        assert (solution.evaluations - 1) % check_every == 0


@pytest.mark.parametrize("solver", EVERY)
@pytest.mark.parametrize("problem", ["linear", "pyramid"])
def test_exact_start_costs_one_evaluation(solver, problem):
    problem = PROBLEMS[problem]()
    z = newton(problem.f, problem.z0)
    solution = EVERY[solver]().solve(problem.f, z)
    assert solution.evaluations == 1
    assert solution.steps.tolist() == [1, 1, 1]
    assert error(solution.z, z) == 0


@pytest.mark.parametrize("solver", EVERY)
def test_fixed_point_at_the_origin(solver):
    """0 / 0 is an exact answer, not a NaN; nor does it spoil the sample beside it."""
    weight = linear().cell.weight.detach()
    z0 = torch.stack([torch.zeros(6, dtype=torch.float64), linear().z0[0]])
    solution = EVERY[solver](max_steps=300, atol=1e-9, rtol=0).solve(lambda z: z @ weight.T, z0)
    assert solution.residual[0] == 0 and solution.steps[0] == 1
    assert solution.z.norm(dim=1).max() < 1e-8


@pytest.mark.parametrize("solver", GENERAL)
def test_tuple_state_keeps_its_structure(solver):
    problem = pyramid()
    z0 = (problem.z0[0].float(), problem.z0[1])
    u = problem.u.detach()

    def f(z):
        assert [part.dtype for part in z] == [torch.float32, torch.float64]
        return problem.cell((z[0].double(), z[1]), u)

    solution = EVERY[solver](max_steps=50, rtol=1e-4).solve(f, z0)
    assert [(p.shape, p.dtype) for p in solution.z] == [(p.shape, p.dtype) for p in z0]
    assert error(solution.z, newton(problem.f, problem.z0)) < 1e-2


@pytest.mark.parametrize("solver", EVERY)
def test_inputs_are_left_alone(solver):
    problem = linear()
    z0, u = problem.z0.clone(), problem.u.detach()
    seen = []
    EVERY[solver](max_steps=8, rtol=0).solve(lambda z: seen.append((z, z.clone())) or problem.cell(z, u), problem.z0)
    assert torch.equal(problem.z0, z0)
    assert all(torch.equal(given, copied) for given, copied in seen)


@pytest.mark.parametrize("solver", EVERY)
def test_a_solver_remembers_nothing(solver):
    problem, other = linear(), linear(radius=0.3, batch=5)
    subject = EVERY[solver](max_steps=12, rtol=1e-5)
    first = subject.solve(problem.f, problem.z0)
    subject.solve(other.f, other.z0)
    second = subject.solve(problem.f, problem.z0)
    assert torch.equal(first.z, second.z) and torch.equal(first.residual, second.residual)


@pytest.mark.parametrize("solver", EVERY)
def test_empty_batch(solver):
    empty = linear().only([])
    solution = EVERY[solver]().solve(empty.f, empty.z0)
    assert solution.z.shape == (0, 6) and solution.residual.shape == (0,)


SHAPES = {
    "column": lambda z: z[:, :1],
    "batch": lambda z: z[:1],
    "transposed": lambda z: z.transpose(1, 2),
    "flattened": lambda z: z.flatten(1),
    "tuple": lambda z: (z, z),
    "tuple of one": lambda z: (z,),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_another_shape_raises(shape):
    with pytest.raises(ValueError, match="must return the structure and shapes of its argument"):
        Anderson().solve(SHAPES[shape], torch.ones(2, 2, 3))


def test_another_order_of_the_tuple_raises():
    with pytest.raises(ValueError, match="must return the structure and shapes of its argument"):
        Anderson().solve(lambda z: (z[1], z[0]), (torch.ones(2, 2), torch.ones(2, 3)))


@pytest.mark.parametrize("solver", GENERAL)
def test_restricting_a_problem_changes_nothing(solver):
    """The zoo itself: samples of a problem do not interact (what the tests of independence rest on)."""
    problem: Problem = tanh()
    assert error(problem.only([1]).f(problem.z0[[1]]), problem.f(problem.z0)[[1]]) < 1e-15


@pytest.mark.parametrize("name", ["max_steps", "check_every"])
@pytest.mark.parametrize("solver", CLASSES)
def test_counts_below_one_are_refused(solver, name):
    with pytest.raises(ValueError, match=rf"`{name}` must be 1 or more, got 0"):
        solver(**{name: 0})


@pytest.mark.parametrize(("name", "range"), [("rtol", r"in \[0, 1\)"), ("atol", "0 or more")])
@pytest.mark.parametrize("value", [-1e-3, float("nan")])
@pytest.mark.parametrize("solver", CLASSES)
def test_bad_tolerances_are_refused(solver, name, range, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be {range}, got {value}"):
        solver(**{name: value})


@pytest.mark.parametrize(
    ("solver", "arguments", "message"),
    [
        (Anderson, {"history": 0}, "`history` must be 1 or more, got 0"),
        (Broyden, {"history": 0}, "`history` must be 1 or more, got 0"),
        (GMRES, {"history": -1}, "`history` must be 1 or more, got -1"),
        (Anderson, {"damping": 0.0}, r"`damping` must be in \(0, 1\], got 0.0"),
        (Anderson, {"ridge": -1.0}, "`ridge` must be 0 or more, got -1.0"),
        (FixedPointIteration, {"damping": 1.5}, r"`damping` must be in \(0, 1\], got 1.5"),
        (FixedPointIteration, {"damping": float("nan")}, r"`damping` must be in \(0, 1\], got nan"),
    ],
)
def test_bad_arguments_are_refused(solver, arguments, message):
    with pytest.raises(ValueError, match=message):
        solver(**arguments)


def test_same_name_means_same_default():
    """A class switched on the command line keeps the same-named values of the old one."""
    defaults: dict[str, set] = {}
    for solver in CLASSES:
        for name, parameter in inspect.signature(solver).parameters.items():
            defaults.setdefault(name, set()).add(parameter.default)
    assert all(len(values) == 1 for values in defaults.values()), defaults
    assert {"max_steps", "rtol", "atol", "check_every"} <= set(defaults)


@pytest.mark.parametrize("solver", EVERY)
def test_repr_copy_and_pickle_give_the_same_solver(solver):
    subject: Solver = EVERY[solver](max_steps=7, rtol=1e-5)
    copies = (eval(repr(subject)), copy.deepcopy(subject), pickle.loads(pickle.dumps(subject)))
    assert all(vars(other) == vars(subject) and type(other) is type(subject) for other in copies)


def test_repr_is_the_constructor_call():
    expected = "Broyden(max_steps=30, rtol=0.001, atol=0.0, check_every=4, history=3, keep='best')"
    assert repr(Broyden(history=3)) == expected


def test_every_status_has_a_sentence():
    assert [status.message.endswith(".") for status in Status] == [True] * 3
    assert Status(1) is Status.max_steps and pickle.loads(pickle.dumps(Status.diverged)) is Status.diverged


@pytest.mark.parametrize("solver", [FixedPointIteration, Anderson, Broyden])
def test_evaluation_has_a_budget_of_its_own(solver):
    problem = tanh()
    given = solver(max_steps=3, rtol=0, eval_max_steps=7)
    assert "eval_max_steps=7" in repr(given)
    assert given.solve(problem.f, problem.z0).evaluations == 3
    assert given.for_evaluation().solve(problem.f, problem.z0).evaluations == 7
    assert given.max_steps == 3
    assert solver(max_steps=3).for_evaluation().max_steps == 3
    with pytest.raises(ValueError, match="`eval_max_steps` must be 1 or more, got 0"):
        solver(eval_max_steps=0)
