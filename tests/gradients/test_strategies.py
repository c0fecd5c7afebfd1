"""What surrounds the mathematics of the strategies: costs, memory, modes, schedules, copies, arguments, autocast."""

import copy
import gc
import inspect
import pickle
import weakref
from types import SimpleNamespace

import pytest
import torch
from support.problems import CONTRACTIVE, Recorder, linear, newton, random, tanh
from torch import nn

from deq_lightning.gradients import JFB, NPG, UPG, GradientStrategy, Implicit, Reversible, RouletteNPG, Unrolled
from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration
from deq_lightning.state import pack

CLASSES = [Implicit, NPG, UPG, JFB, Unrolled, RouletteNPG]
SOLVERS = [FixedPointIteration, Anderson, Broyden, GMRES]
STRATEGIES = [
    *CLASSES,
    lambda **kw: UPG(checkpoint=True, **kw),
    lambda **kw: NPG(rtol=1e-2, **kw),
    lambda **kw: Reversible(steps=40, **kw),
]
IDS = [*(strategy.__name__ for strategy in CLASSES), "UPG-checkpoint", "NPG-rtol", "Reversible"]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=IDS)


def loss_of(z):
    return pack(z).sin().sum()


@every_strategy
@pytest.mark.parametrize("problem", CONTRACTIVE)
@pytest.mark.parametrize("training", [True, False])
def test_everything_receives_a_gradient(strategy, problem, training):
    """In eval mode too: attacks, saliency and frozen fine-tuning need it."""
    problem = CONTRACTIVE[problem]()
    problem.cell.train(training)
    z, _ = strategy().fixed_point(problem.f, problem.z0, Anderson())
    loss_of(z).backward()
    for tensor in problem.inputs:
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all() and tensor.grad.abs().sum() > 0


@every_strategy
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("budget", [1, 2, 30])
def test_the_answer_is_the_same_without_gradients(strategy, mode, budget):
    problem = tanh()
    expected, solution = strategy().fixed_point(problem.f, problem.z0, Anderson(max_steps=budget))
    recorder = Recorder(problem.f)
    with mode():
        z, _ = strategy().fixed_point(recorder, problem.z0, Anderson(max_steps=budget))
    assert not z.requires_grad
    assert torch.equal(z, expected)
    assert recorder.calls == (0 if solution is None else solution.evaluations) + strategy().evaluations


@pytest.mark.parametrize(
    ("strategy", "forward", "backward"),
    [(Implicit(), 1, 0), (NPG(), 1, 0), (JFB(), 1, 0), (UPG(k=3), 3, 0), (UPG(k=3, checkpoint=True), 3, 3)],
    ids=repr,
)
def test_evaluations_beyond_the_solve(strategy, forward, backward):
    problem = tanh()
    recorder = Recorder(problem.f)
    z, solution = strategy.fixed_point(recorder, problem.z0, Anderson())
    assert recorder.calls == solution.evaluations + forward
    loss_of(z).backward()
    assert recorder.calls == solution.evaluations + forward + backward


def test_each_parameter_sees_one_gradient_per_backward():
    """Hooks on parameters, DDP's among them, must not fire for the products inside the adjoint solve."""
    problem, fired = tanh(), []
    problem.cell.weight.register_hook(lambda grad: fired.append(grad))
    loss_of(Implicit().fixed_point(problem.f, problem.z0, Anderson())[0]).backward()
    assert len(fired) == 1


@every_strategy
@pytest.mark.parametrize("backward", [False, True])
def test_nothing_outlives_the_graph(strategy, backward):
    problem, alive = linear(), []
    for _ in range(3):
        u = problem.u * 1.0
        z, solution = strategy().fixed_point(lambda z, u=u: problem.cell(z, u), problem.z0, Anderson())
        if backward:
            loss_of(z).backward()
        alive += [weakref.ref(u), weakref.ref(z), *([weakref.ref(solution.z)] if solution else [])]
    del u, z, solution
    gc.collect()
    assert not any(reference() is not None for reference in alive)


@pytest.mark.parametrize("strategy", [Implicit, NPG, UPG, JFB])
def test_no_graph_is_kept_through_the_solve(strategy):
    """The memory of backward does not grow with the steps of the solver."""
    problem = tanh()
    sizes = []
    for steps in (2, 20):
        saved = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x)
        with hooks:
            strategy().fixed_point(problem.f, problem.z0, FixedPointIteration(steps, 0))
        sizes.append(len(saved))
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("strategy", [Implicit, NPG, UPG, JFB])
def test_frozen_parameters_still_pass_the_gradient_on(strategy):
    problem = tanh()
    (expected,) = torch.autograd.grad(loss_of(strategy().fixed_point(problem.f, problem.z0, Anderson())[0]), problem.u)
    problem.cell.requires_grad_(False)
    loss_of(strategy().fixed_point(problem.f, problem.z0, Anderson())[0]).backward()
    torch.testing.assert_close(problem.u.grad, expected)
    assert problem.cell.weight.grad is None


@every_strategy
def test_with_nothing_to_learn_there_is_no_graph(strategy):
    """A frozen body under a trainable readout must not pay for an adjoint solve that reaches nobody."""
    problem = tanh()
    problem.cell.requires_grad_(False)
    problem.u.requires_grad_(False)
    z, _ = strategy().fixed_point(problem.f, problem.z0, Anderson())
    assert not z.requires_grad


@pytest.mark.parametrize("strategy", [Implicit, NPG, UPG, JFB])
def test_a_map_that_ignores_its_state(strategy):
    """J = 0: the fixed point is the injection, its gradient (times λ Σ (1 - λ)ⁱ for the phantom ones) too."""
    u = random(3, 4).requires_grad_()
    z, _ = strategy().fixed_point(lambda z: 2 * u, torch.zeros(3, 4, dtype=u.dtype), Anderson())
    z.sum().backward()
    share = 1 - 0.5**5 if strategy in (NPG, UPG) else 1.0
    torch.testing.assert_close(u.grad, torch.full_like(u, 2 * share))


@every_strategy
def test_pretraining_unrolls_and_then_solves(strategy):
    problem = tanh()
    subject = strategy(pretrain_steps=3, unroll_steps=4)
    z = problem.z0
    for _ in range(4):
        z = problem.f(z)
    for step in range(3):
        subject.on_train_batch_end(SimpleNamespace(global_step=step), None, None, None, step)
        actual, solution = subject.fixed_point(problem.f, problem.z0, Anderson())
        assert solution is None and torch.equal(actual, z) and actual.requires_grad
        with torch.no_grad():  # evaluation sees the network that is trained
            actual, solution = subject.fixed_point(problem.f, problem.z0, Anderson())
        assert solution is None and torch.equal(actual, z)
    subject.on_train_batch_end(SimpleNamespace(global_step=3), None, None, None, 2)
    actual, solution = subject.fixed_point(problem.f, problem.z0, Anderson(max_steps=60, rtol=1e-8))
    if isinstance(subject, Unrolled):
        assert solution is None
    else:
        assert solution is not None
        torch.testing.assert_close(actual, newton(problem.f, problem.z0), rtol=1e-5, atol=1e-6)


@every_strategy
@pytest.mark.parametrize("other", CLASSES)
def test_the_schedule_survives_a_checkpoint(strategy, other):
    """Into the same strategy or another one: both count the same optimizer steps, under the same key."""
    subject = strategy(pretrain_steps=10)
    subject.on_train_batch_end(SimpleNamespace(global_step=7), None, None, None, 6)
    restored = other(pretrain_steps=10)
    restored.load_state_dict(subject.state_dict())
    assert restored.step == 7
    assert restored.state_key == subject.state_key


def test_same_name_means_same_default():
    defaults: dict[str, set] = {}
    for strategy in CLASSES:
        for name, parameter in inspect.signature(strategy).parameters.items():
            defaults.setdefault(name, set()).add(parameter.default)
    assert all(len(values) == 1 for values in defaults.values()), defaults
    assert {"pretrain_steps", "unroll_steps", "k", "damping"} <= set(defaults)


@every_strategy
def test_repr_copy_and_pickle_give_the_same_strategy(strategy):
    subject: GradientStrategy = strategy(pretrain_steps=5)
    assert repr(eval(repr(subject))) == repr(subject)
    subject.step = 3
    subject.log = print  # what Lightning binds to a callback must not be copied along
    for other in (copy.deepcopy(subject), pickle.loads(pickle.dumps(subject))):
        assert type(other) is type(subject) and repr(other) == repr(subject)
        assert other.step == 3 and "log" not in vars(other)


def test_repr_is_the_constructor_call():
    assert repr(NPG(k=3)) == "NPG(pretrain_steps=0, unroll_steps=10, k=3, damping=0.5, rtol=0.0)"
    assert "adjoint_solver=Broyden(max_steps=30" in repr(Implicit(adjoint_solver=Broyden()))


@pytest.mark.parametrize(
    ("strategy", "arguments", "message"),
    [
        (UPG, {"k": 0}, "`k` must be 1 or more, got 0"),
        (NPG, {"k": -1}, "`k` must be 1 or more, got -1"),
        (UPG, {"damping": 1.5}, r"`damping` must be in \(0, 1\], got 1.5"),
        (NPG, {"damping": 0.0}, r"`damping` must be in \(0, 1\], got 0.0"),
        (NPG, {"damping": float("nan")}, r"`damping` must be in \(0, 1\], got nan"),
        *[(strategy, {"pretrain_steps": -1}, "`pretrain_steps` must be 0 or more, got -1") for strategy in CLASSES],
        *[(strategy, {"unroll_steps": 0}, "`unroll_steps` must be 1 or more, got 0") for strategy in CLASSES],
    ],
)
def test_bad_arguments_are_refused(strategy, arguments, message):
    with pytest.raises(ValueError, match=message):
        strategy(**arguments)


class Network(nn.Module):
    """A whole network: injection, cell with two layers and a norm, readout."""

    def __init__(self):
        super().__init__()
        self.inject, self.readout = nn.Linear(5, 8), nn.Linear(8, 2)
        self.inner, self.outer, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x, strategy, solver):
        u = self.inject(x)

        def cell(z):
            return self.norm(u + 0.3 * self.outer(torch.relu(self.inner(z))))

        z, _ = strategy.fixed_point(cell, torch.zeros(len(x), 8), solver)
        return self.readout(z), z


@every_strategy
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("stage", ["unrolled", "solved"])
def test_bfloat16_autocast(strategy, solver, stage):
    torch.manual_seed(0)
    network, x = Network(), torch.randn(6, 5)
    subject = strategy(pretrain_steps=1 if stage == "unrolled" else 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(x, subject, solver())[0].float().pow(2).sum().backward()
    rounded = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert torch.isfinite(rounded).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    network.zero_grad()
    network(x, subject, solver())[0].pow(2).sum().backward()
    exact = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert torch.cosine_similarity(rounded, exact, dim=0) > 0.99


@every_strategy
def test_the_state_keeps_its_dtype_under_autocast(strategy):
    """Whatever strategy is chosen, readouts and penalties see a state of the dtype it started with."""
    torch.manual_seed(0)
    layer, u = nn.Linear(4, 4), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, _ = strategy().fixed_point(lambda z: 0.3 * layer(z) + u.bfloat16(), torch.zeros(3, 4), Anderson())
    assert z.dtype == torch.float32
