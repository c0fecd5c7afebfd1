"""The defects that were found in the peers' libraries, one by one, and that they do not occur here."""

import copy
import gc
import io
import pickle
import weakref
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.problems import (
    Problem,
    Recorder,
    dense_implicit_gradient,
    gradients_of,
    linear,
    matrix,
    newton,
    random,
    relative_error,
    rotation,
    rotations,
    tanh,
)
from support.runs import TINY
from torch import nn
from torch.autograd import gradcheck

from deq_lightning import FPN, MDEQ, DEQTransformer, Digits, Equilibrium, ImageClassification, ImplicitModel
from deq_lightning.cli import main
from deq_lightning.gradients import JFB, NPG, UPG, Implicit, Unrolled
from deq_lightning.models.layers.frozen import VariationalDropout, frozen
from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration, Status
from deq_lightning.state import pack

STRATEGIES = [Implicit, NPG, UPG, JFB, Unrolled]
SOLVERS = [FixedPointIteration, Anderson, Broyden, GMRES]
TIGHT = GMRES(max_steps=200, rtol=1e-12, history=50)
SMALL = dict(in_channels=1, channels=(4,), groups=2, expansion=2, head_channels=(2,), final_channels=8)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
every_solver = pytest.mark.parametrize("solver", SOLVERS)
every_adjoint = pytest.mark.parametrize("adjoint", SOLVERS)


class Model(ImplicitModel):
    """A whole network in float64: affine injection, tanh cell, affine readout."""

    def __init__(self) -> None:
        super().__init__(Anderson(max_steps=100, rtol=1e-12))
        self.encoder, self.decoder = nn.Linear(4, 6), nn.Linear(6, 3)
        self.weight = nn.Parameter(matrix(6, 0.7))
        self.double()

    def inject(self, x):
        return self.encoder(x)

    def cell(self, z, u):
        return torch.tanh(z @ self.weight.T + u)

    def readout(self, z):
        return self.decoder(z)


def model(gradient) -> Model:
    torch.manual_seed(0)
    built = Model()
    built.gradient = gradient
    return built


def mdeq(seed: int = 0, **options) -> MDEQ:
    torch.manual_seed(seed)
    return MDEQ(**{**SMALL, "solver": FixedPointIteration(max_steps=4), **options})


def true_residual(f, z) -> torch.Tensor:
    with torch.no_grad():
        fz = f(z)
        return (fz - z).norm(dim=1) / fz.norm(dim=1)


def single(problem: Problem) -> Problem:
    """Return the problem in float32; its float64 parameters are left alone."""
    cell = copy.deepcopy(problem.cell).float()
    return Problem(cell, problem.u.detach().float().requires_grad_(), problem.z0.float())


def trainer(folder: Path, **options) -> pl.Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False)
    return pl.Trainer(default_root_dir=folder, accelerator="cpu", **quiet, **options)


# --- 1


def second_derivative(strategy, problem: Problem, direction: torch.Tensor) -> torch.Tensor:
    """Return the curvature of sum(sin z*) along a direction of the injection."""
    z, _ = strategy.fixed_point(problem.f, problem.z0, Anderson(200, 1e-12))
    (first,) = torch.autograd.grad(z.sin().sum(), problem.u, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), problem.u)
    return (second * direction).sum()


EXACT = Implicit(adjoint_solver=GMRES(200, 1e-12))


@pytest.mark.parametrize(
    "strategy", [UPG(k=99, damping=1.0), UPG(k=99, checkpoint=True), Unrolled(unroll_steps=99), EXACT]
)
def test_01_second_order_gradients_are_right(strategy):
    """Defect: the second derivative of an implicit gradient has the wrong value, and nothing says so."""
    problem, direction = tanh(radius=0.5, dim=4), random(3, 4, seed=5)

    def loss(step):
        shifted = Problem(problem.cell, (problem.u + step * direction).detach(), problem.z0)
        return newton(shifted.f, problem.z0).sin().sum().item()

    difference = (loss(1e-4) - 2 * loss(0) + loss(-1e-4)) / 1e-8
    assert second_derivative(strategy, problem, direction).item() == pytest.approx(difference, rel=1e-5)


# --- 2


@every_adjoint
def test_02_one_module_applied_twice_before_one_backward(adjoint):
    """Defect: two equilibria of one module (siamese use) and then one backward never return."""
    problem = tanh(radius=0.5)
    other = Problem(problem.cell, random(3, 8, seed=8).requires_grad_(), problem.z0)
    strategy, g = Implicit(adjoint_solver=adjoint(200, 1e-12)), [random(3, 8, seed=20), random(3, 8, seed=21)]
    outputs = [strategy.fixed_point(each.f, each.z0, Anderson(200, 1e-13))[0] for each in (problem, other)]
    (actual,) = torch.autograd.grad(outputs, problem.cell.weight, g)
    expected = sum(
        dense_implicit_gradient(each, newton(each.f, each.z0), each_g)
        for each, each_g in zip((problem, other), g, strict=True)
    )
    assert relative_error(actual.flatten(), expected[: actual.numel()]) < 1e-8


def test_02_gradcheck_returns():
    """Defect: gradcheck, which differentiates one graph again and again, never returns."""
    problem = tanh(radius=0.5, dim=3, batch=2)

    def twice(weight, u):
        z = problem.z0
        for _ in range(2):
            z, _ = Implicit(adjoint_solver=TIGHT).fixed_point(
                lambda z, u=u + z: torch.tanh(z @ weight.T + u), problem.z0, Anderson(100, 1e-14, history=3)
            )
        return z

    assert gradcheck(twice, (problem.cell.weight, problem.u), atol=1e-6)


# --- 3


@every_strategy
def test_03_a_forward_without_backward_keeps_nothing_alive(strategy):
    """Defect: a training forward whose backward never comes leaks its outputs for good."""
    subject, alive = model(strategy()).train(), []
    for seed in range(3):
        logits, equilibria = subject(random(5, 4, seed=seed))
        alive += [weakref.ref(logits), weakref.ref(equilibria[0].z), weakref.ref(equilibria[0].f)]
        assert logits.requires_grad
    del logits, equilibria
    gc.collect()
    assert not any(reference() is not None for reference in alive)


# --- 4 and 5


@every_adjoint
def test_04_implicit_gradients_under_autocast(adjoint):
    """Defect: under autocast the backward of a cell that answers in bfloat16 raises."""
    problem = tanh(radius=0.6, dim=16)
    z, g = newton(problem.f, problem.z0), random(3, 16, seed=3)
    expected = dense_implicit_gradient(problem, z, g)
    rounded, seen = single(problem), []

    def f(z):
        fz = torch.tanh(nn.functional.linear(z, rounded.cell.weight) + rounded.u.bfloat16())
        seen.append(fz.dtype)
        return fz

    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = Implicit(adjoint_solver=adjoint()).fixed_point(f, rounded.z0, Anderson())
        actual = gradients_of(rounded, output, g.float())
    assert set(seen) == {torch.bfloat16} and actual.dtype == torch.float32
    assert torch.cosine_similarity(actual.double(), expected, dim=0) > 0.99


@pytest.mark.parametrize("solver", [Anderson, GMRES])  # Broyden corrects itself
def test_05_autocast_leaves_the_solver_alone(solver):
    """Defect: autocast rounds the solver's own products to half precision, and the residual stays at 1e-3."""
    problem = linear(radius=0.9, dim=16)
    rounded = single(problem)

    def f(z):
        with torch.autocast("cpu", enabled=False):
            return rounded.f(z)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = solver(max_steps=36, rtol=0, history=36).solve(f, rounded.z0)
    assert true_residual(problem.f, solution.z.double()).max() < 1e-5


# --- 6


def test_06_anderson_does_not_depend_on_the_scale_of_the_state():
    """Defect: an absolute ridge switches the acceleration off for small states."""
    problem = tanh(radius=0.95, dim=64, batch=16)
    for steps in (10, 20, 30):
        big = Anderson(steps, 0).solve(problem.f, problem.z0).z
        small = Anderson(steps, 0).solve(lambda z: 1e-3 * problem.f(1e3 * z), 1e-3 * problem.z0).z
        ratio = true_residual(problem.f, 1e3 * small) / true_residual(problem.f, big)
        assert 0.5 < ratio.min() and ratio.max() < 2


def test_06_anderson_is_no_worse_than_plain_iteration_near_convergence():
    """Defect: an absolute ridge switches the acceleration off as the residual falls."""
    problem = tanh(radius=1.5, dim=64, batch=16)
    rounded = single(problem)
    accelerated, plain = (
        true_residual(problem.f, solver(50, 0).solve(rounded.f, rounded.z0).z.double())
        for solver in (Anderson, FixedPointIteration)
    )
    assert plain.min() > 1e-6  # above what float32 allows
    assert (accelerated <= plain).all()


# --- 7


@every_solver
def test_07_a_nan_sample_keeps_its_last_finite_best(solver):
    """Defect: one sample's NaN replaces its answer (0 · NaN is NaN) and keeps the whole batch running."""
    problem = linear(radius=0.7)
    recorder = Recorder(problem.f, spoil=[1], after=5)
    solution = solver(max_steps=60, rtol=1e-7, check_every=1).solve(recorder, problem.z0)
    best = recorder.residuals[:5, 1].argmin()
    assert torch.equal(solution.z[1], recorder.points[best][1])
    assert solution.status.tolist() == [Status.converged, Status.diverged, Status.converged]
    assert (true_residual(problem.f, solution.z)[[0, 2]] <= 1e-7).all()
    assert solution.evaluations == recorder.calls == solution.steps[[0, 2]].max() < 60


# --- 8


@every_solver
def test_08_the_gradient_after_an_early_stop_is_still_the_strategys(solver):
    """Defect: where the solver stops early the adjoint is never solved, and a one-step gradient comes instead."""

    class Counting(GMRES):
        solves = 0

        def solve(self, f, z0, scale=None):
            self.solves += 1
            return super().solve(f, z0, scale)

    problem, adjoint, g = linear(), Counting(200, 1e-12), random(3, 6, seed=3)
    z, solution = Implicit(adjoint_solver=adjoint).fixed_point(problem.f, problem.z0, solver(60, 1e-1, check_every=1))
    assert solution.evaluations < 30 and adjoint.solves == 0
    actual = gradients_of(problem, z, g)
    assert adjoint.solves == 1
    assert relative_error(actual, dense_implicit_gradient(problem, solution.z, g)) < 1e-8


# --- 9


@every_solver
def test_09_the_returned_iterate_has_the_lowest_residual(solver):
    """Defect: the state that is returned is one step away from the best one."""
    problem, earlier = rotation(dim=12, batch=8), 0
    for budget in range(2, 9):
        recorder = Recorder(problem.f)
        solution = solver(max_steps=budget, rtol=0).solve(recorder, problem.z0)
        chosen = recorder.residuals.argmin(dim=0)
        assert torch.equal(solution.z, torch.stack(recorder.points)[chosen, torch.arange(8)])
        torch.testing.assert_close(solution.residual, true_residual(problem.f, solution.z), rtol=1e-9, atol=0)
        earlier += (chosen < budget - 1).sum()
    assert earlier > 0  # else the last iterate would do as well


# --- 10


@pytest.mark.parametrize("budget", [1, 2])
@every_solver
def test_10_the_smallest_budgets_are_spent_and_not_wasted(solver, budget):
    """Defect: a budget of two evaluations is spent, the start is returned, and the residual is made up."""
    problem = linear(radius=0.5)
    recorder = Recorder(problem.f)
    solution = solver(max_steps=budget, rtol=0).solve(recorder, problem.z0)
    assert solution.evaluations == recorder.calls == budget
    assert solution.steps.tolist() == [budget] * 3
    torch.testing.assert_close(solution.residual, true_residual(problem.f, solution.z), rtol=1e-12, atol=0)
    assert torch.equal(solution.z, recorder.points[-1])
    if budget == 2:
        assert (solution.residual < true_residual(problem.f, problem.z0)).all()


# --- 11


def test_11_broyden_on_one_sample_does_not_stop_on_a_statistic_over_the_batch():
    """Defect: "no progress" is judged across the batch, so one sample alone stops at three times its tolerance."""
    problem = tanh(radius=1.3, dim=128, batch=1)
    reached = Broyden(max_steps=45, rtol=0).solve(problem.f, problem.z0).residual.item()
    assert 1e-10 < reached < 1e-2
    solution = Broyden(max_steps=200, rtol=reached / 2, check_every=1).solve(problem.f, problem.z0)
    assert solution.evaluations > 45 and solution.status.item() == Status.converged
    assert true_residual(problem.f, solution.z) <= reached / 2


# --- 12


@pytest.mark.parametrize("weight", [rotations(8, 0.9), matrix(64, 0.9)], ids=["rotation", "random"])
def test_12_the_spectral_radius_of_complex_eigenvalues(weight):
    """Defect: a Rayleigh quotient does not converge where the largest eigenvalues are a complex pair."""
    from deq_lightning.estimators import spectral_radius

    torch.manual_seed(0)
    u = random(3, len(weight))
    radius = spectral_radius(lambda z: z @ weight.T + u, random(3, len(weight), seed=2))
    assert radius.shape == (3,)
    assert radius.tolist() == pytest.approx([0.9] * 3, rel=0.02)


# --- 13


@pytest.mark.parametrize("solver", [FixedPointIteration, Anderson])
def test_13_damping_does_not_scale_the_residual(solver):
    """Defect: the residual of a damped step is that much smaller, so the solve "converges" early."""
    problem = linear()
    first = solver(max_steps=1, damping=0.1).solve(problem.f, problem.z0)
    torch.testing.assert_close(first.residual, true_residual(problem.f, problem.z0), rtol=1e-12, atol=0)
    solution = solver(max_steps=2000, rtol=1e-3, damping=0.05, check_every=1).solve(problem.f, problem.z0)
    assert (solution.status == Status.converged).all()
    assert (true_residual(problem.f, solution.z) <= 1e-3).all()


# --- 14


@pytest.mark.parametrize("budget", [12, 30])
@every_adjoint
def test_14_the_scale_of_the_loss_keeps_the_gradient(adjoint, budget):
    """Defect: an absolute backward tolerance stops too early for small losses and returns zero for large ones."""
    problem = single(tanh(radius=0.95, dim=16))
    z, g = Anderson(100, 1e-6).solve(problem.f, problem.z0).z, random(3, 16, seed=3).float()
    strategy = Implicit(adjoint_solver=adjoint(max_steps=budget))
    expected = gradients_of(problem, strategy.attach(problem.f, z), g)
    for scale in (1e-6, 1e-3, 65536.0, 1e8, 1e9):
        actual = gradients_of(problem, strategy.attach(problem.f, z), scale * g)
        assert actual.abs().min() > 0
        assert relative_error(actual / scale, expected) < 1e-3


# --- 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_adjoint
def test_15_every_solver_solves_the_adjoint_with_its_defaults(adjoint, dtype):
    """Defect: a documented solver raises as soon as it is chosen for the backward."""
    problem = tanh(radius=0.8)
    z, g = newton(problem.f, problem.z0), random(3, 8, seed=3)
    expected = dense_implicit_gradient(problem, z, g)
    subject = problem if dtype == torch.float64 else single(problem)
    output = Implicit(adjoint_solver=adjoint()).attach(subject.f, z.to(dtype))
    assert relative_error(gradients_of(subject, output, g.to(dtype)).double(), expected) < 1e-2


# --- 16


@pytest.mark.parametrize(("device", "dtype"), [("meta", torch.float32), ("cpu", torch.bfloat16)])
def test_16_dropout_masks_live_where_their_input_does(device, dtype):
    """Defect: masks are made on the CPU in float32, whatever they multiply."""
    dropped = frozen(VariationalDropout(0.5, shared=(2, 3)))(torch.ones(4, 8, 2, 2, dtype=dtype, device=device))
    assert (dropped.device.type, dropped.dtype, dropped.shape) == (device, dtype, (4, 8, 2, 2))


def test_16_dropout_masks_follow_the_batch_size():
    """Defect: the mask of the last forward is kept, and does not fit the next batch."""
    subject = mdeq(dropout=0.5).train()
    for batch in (4, 3, 5):
        logits, _ = subject(torch.randn(batch, 1, 8, 8))
        logits.sum().backward()
        assert logits.shape == (batch, 10) and torch.isfinite(logits).all()


# --- 17


@pytest.mark.parametrize("outside", [True, False])
def test_17_the_spectral_radius_in_inference_mode(outside):
    """Defect: the spectral radius, asked for in inference mode, raises."""
    from deq_lightning.estimators import spectral_radius

    torch.manual_seed(0)
    with torch.inference_mode(not outside):
        weight, u, z = matrix(8, 0.9), random(3, 8), random(3, 8, seed=2)
    with torch.inference_mode():
        radius = spectral_radius(lambda z: z @ weight.T + u, z)
    assert radius.tolist() == pytest.approx([0.9] * 3, rel=0.02)


class Watched(ImageClassification):
    """Logs whether it is evaluated in inference mode, and a number that `watch` makes of the equilibrium."""

    watch = staticmethod(lambda equilibrium: equilibrium.solution.residual)

    def _evaluate(self, batch, split, *others):
        super()._evaluate(batch, split, *others)
        (equilibrium,) = self.net(batch[0])[1]
        self.log(f"{split}_watched", self.watch(equilibrium).mean())
        self.log(f"{split}_inference", float(torch.is_inference_mode_enabled()))


def watched(task: Watched, folder: Path) -> list[float]:
    """Validate and test in inference mode."""
    run, data = trainer(folder, limit_val_batches=2, limit_test_batches=2), Digits(eval_batch_size=20)
    (val,), (test,) = run.validate(task, data, verbose=False), run.test(task, data, verbose=False)
    assert val["val_inference"] == test["test_inference"] == 1
    assert 0 < val["val_loss"] < 10 and 0 < test["test_loss"] < 10
    return [val["val_watched"], test["test_watched"]]


@every_strategy
def test_17_validate_and_test_run_in_inference_mode(strategy, folder):
    """Defect: Lightning's `validate` and `test`, which are in inference mode by default, raise."""
    task = Watched(mdeq())
    task.net.gradient = strategy()
    if strategy is Unrolled:
        task.watch = lambda equilibrium: pack(equilibrium.z)
    assert all(torch.isfinite(torch.tensor(watched(task, folder))))


def test_17_the_spectral_radius_in_validate_and_test(folder):
    """Defect: the spectral radius, asked for there, raises. The map's own tensors were made in inference mode too."""
    from deq_lightning.estimators import spectral_radius

    task = Watched(mdeq())
    task.watch = lambda equilibrium: spectral_radius(equilibrium.f, equilibrium.z)
    assert all(0 < radius < 10 for radius in watched(task, folder))


# --- 18 and 19


def train_a_step(subject: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Take one step and return the loss before it."""
    loss = nn.functional.cross_entropy(subject.train()(x)[0], torch.arange(len(x)))
    subject.zero_grad()
    loss.backward()
    torch.optim.SGD(subject.parameters(), lr=0.1).step()
    return loss.detach()


def saved(subject: nn.Module) -> nn.Module:
    """Send the parameters through a file, into another model."""
    file, other = io.BytesIO(), mdeq(seed=1)
    torch.save(subject.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_18_models_with_weight_norm_can_be_copied_and_saved(duplicate):
    """Defect: a model with normalised weights can be neither copied nor pickled once it has run."""
    subject, x = mdeq(), torch.randn(4, 1, 8, 8)
    train_a_step(subject, x)
    graph = subject(x)
    other = duplicate(subject).eval()
    assert torch.equal(other(x)[0], subject.eval()(x)[0])
    train_a_step(other, x)
    assert not torch.equal(other.eval()(x)[0], subject(x)[0])
    graph[0].sum().backward()


def test_19_normalised_weights_follow_their_parameters():
    """Defect: the normalised weight stays what it was after loading, casting and stepping."""
    subject, x = mdeq(), torch.randn(4, 1, 8, 8)
    before = train_a_step(subject, x)
    assert train_a_step(subject, x) != before
    assert torch.equal(saved(subject).eval()(x)[0], subject.eval()(x)[0])
    other = mdeq(seed=1).eval()
    subject.load_state_dict(other.state_dict())
    assert torch.equal(subject(x)[0], other(x)[0])
    wide = subject.double()(x.double())[0]
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), other(x)[0], rtol=1e-3, atol=1e-3)


# --- 20


@pytest.mark.parametrize(
    "made",
    [*SOLVERS, *STRATEGIES, MDEQ, FPN, DEQTransformer, partial(ImageClassification, MDEQ(in_channels=1)), Digits],
)
def test_20_a_misspelt_argument_is_refused(made):
    """Defect: misspelt options are accepted and ignored."""
    with pytest.raises(TypeError, match="max_stepz"):
        made(max_stepz=3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model.net.solver", "Andersn"], ["Andersn", "Did you mean Anderson"]),
        (["--model.net.solver.max_stepz", "3"], ["max_stepz", "Did you mean max_steps"]),
        (["--gradient", "Implicit", "--gradient.adjoint_solver", "Broydn"], ["Broydn", "Did you mean Broyden"]),
    ],
)
def test_20_a_misspelt_name_on_the_command_line_gets_one_line(arguments, named, folder, capsys):
    """Defect: an unknown solver is an empty assertion error."""
    with pytest.raises(SystemExit):
        main(["fit", *TINY, *arguments])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(name in line for name in named)


def test_20_the_backward_solvers_options_are_within_reach(folder):
    """Defect: the backward solver's memory and ridge cannot be set."""
    adjoint = ["--gradient.adjoint_solver", "Anderson", "--gradient.adjoint_solver.history", "3"]
    adjoint += ["--gradient.adjoint_solver.ridge", "1e-5"]
    cli = main([*TINY, "--gradient", "Implicit", *adjoint], run=False)
    (strategy,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, Implicit)]
    assert (strategy.adjoint_solver.history, strategy.adjoint_solver.ridge) == (3, 1e-5)


# --- 21


@pytest.mark.parametrize("strategy", [Implicit(adjoint_solver=TIGHT), UPG(k=60), NPG(k=60), Unrolled(unroll_steps=60)])
def test_21_evaluation_mode_gives_gradients(strategy):
    """Defect: in evaluation mode no gradient reaches the input, nor the parameters."""
    subject, x, direction = model(strategy).eval(), random(5, 4).requires_grad_(), random(5, 4, seed=2)
    subject(x)[0].sin().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in subject.parameters())
    with torch.no_grad():
        up, down = (subject(x + step * direction)[0].sin().sum() for step in (1e-5, -1e-5))
    assert (x.grad * direction).sum().item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-6)


# --- 22


def equilibrium_of(weight: torch.Tensor) -> Equilibrium:
    return Equilibrium(lambda z: z @ weight.T, random(4, len(weight)), None)


def seeded(penalty, weight: torch.Tensor, step: int = 0) -> torch.Tensor:
    torch.manual_seed(0)
    return penalty([equilibrium_of(weight)], step)


def test_22_every_option_of_the_jacobian_penalty_is_used():
    """Defect: the options of the Jacobian penalty are parsed and read nowhere."""
    from deq_lightning import JacobianPenalty

    weight = matrix(6, 0.9).requires_grad_()
    one = seeded(JacobianPenalty(), weight)
    assert one.item() > 0
    torch.testing.assert_close(seeded(JacobianPenalty(weight=3.0), weight), 3 * one)
    assert not torch.allclose(seeded(JacobianPenalty(probes=5), weight), one)
    staged = JacobianPenalty(weight=1.0, milestones={5: 2.0, 9: 0.0})
    values = torch.stack([seeded(staged, weight, step) for step in (0, 4, 5, 8, 9, 99)])
    torch.testing.assert_close(values, one * torch.tensor([1, 1, 2, 2, 0, 0]))
    torch.manual_seed(0)
    seldom = JacobianPenalty(frequency=0.25)
    applied = sum(seldom([equilibrium_of(weight)], step).item() > 0 for step in range(400))
    assert 60 < applied < 140


def test_22_the_jacobian_penalty_is_the_squared_norm_of_the_jacobian():
    """Defect: the Jacobian penalty has no effect. Here the ratio of two values, and the slope, are the dense norm's."""
    from deq_lightning import JacobianPenalty

    first, second = matrix(6, 0.9).requires_grad_(), matrix(6, 0.4, seed=1)
    many = JacobianPenalty(probes=3000)
    value = seeded(many, first)
    ratio = (first.norm() / second.norm()).item() ** 2
    assert (value / seeded(many, second)).item() == pytest.approx(ratio, rel=0.05)
    (slope,) = torch.autograd.grad(value, first)
    assert torch.cosine_similarity(slope.flatten(), first.flatten(), dim=0) > 0.99


def test_22_the_penalty_changes_the_training_step(folder):
    """Defect: training with the penalty is training without it."""
    from deq_lightning import JacobianPenalty

    def step(**options):
        task = ImageClassification(mdeq(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), **options)
        before = nn.utils.parameters_to_vector(task.net.parameters()).detach()
        torch.manual_seed(0)
        trainer(folder, max_steps=1, limit_val_batches=0).fit(task, Digits(batch_size=16))
        return before - nn.utils.parameters_to_vector(task.net.parameters()).detach()

    without, one, two = step(), step(penalty=JacobianPenalty(1.0)), step(penalty=JacobianPenalty(2.0))
    torch.testing.assert_close(step(penalty=JacobianPenalty(0.0)), without)
    assert relative_error(one, without) > 1e-3
    assert relative_error(two - without, 2 * (one - without)) < 1e-2
