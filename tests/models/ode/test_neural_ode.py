"""Neural ODEs: published sizes, exact solutions, the adjoint's gradient, and what is counted and refused."""

import copy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from support import fake_data
from support.marks import slow
from support.problems import relative_error
from torch import Tensor, nn
from torchdiffeq import odeint

from deq_lightning import Digits, ImageClassification, NeuralODE
from deq_lightning.cli import main
from deq_lightning.models import IntegrationError

TINY = {"image_size": 8, "width": 6}


def net(**arguments: object) -> NeuralODE:
    torch.manual_seed(0)
    return NeuralODE(**{**TINY, **arguments})


def precise(**arguments: object) -> NeuralODE:
    return net(rtol=1e-9, atol=1e-9, **arguments).double()


def images(batch: int = 3, channels: int = 1, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def run(model: NeuralODE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the gradient of the sum of their squares, flat."""
    logits, equilibria = model(x)
    assert equilibria == []
    grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
    return logits.detach(), torch.cat([grad.flatten() for grad in grads])


def make_linear(model: NeuralODE, a: Tensor) -> None:
    """Set the convolutions so that f(t, h) = A h on the channels: ReLU(h) − ReLU(−h) = h."""
    first, second, third = model.dynamics.f.convs
    for parameter in model.dynamics.parameters():
        nn.init.zeros_(parameter)
    eye = torch.eye(len(a), dtype=a.dtype)
    with torch.no_grad():
        first.weight[..., 0, 0] = torch.cat([eye, -eye])
        second.weight[..., 1, 1] = torch.eye(2 * len(a), dtype=a.dtype)
        third.weight[..., 0, 0] = torch.cat([a, -a], dim=1)


def matrix(size: int) -> Tensor:
    return torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# --- what is built


@pytest.mark.parametrize(
    ("arguments", "autonomous", "time_dependent"),
    [
        ({"in_channels": 1, "image_size": 28, "width": 92}, 84_395, 85_316),
        ({"in_channels": 1, "image_size": 28, "width": 64, "augment_channels": 5}, 84_816, 85_462),
        ({"in_channels": 3, "image_size": 32, "width": 125}, 172_358, 173_611),
        ({"in_channels": 3, "image_size": 32, "width": 64, "augment_channels": 10}, 171_799, 172_452),
    ],
)
def test_published_parameter_counts(arguments: dict, autonomous: int, time_dependent: int) -> None:
    for expected, time in ((autonomous, False), (time_dependent, True)):
        model = NeuralODE(**arguments, time_dependent=time)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_augmented_channels_start_at_zero_behind_the_image() -> None:
    model, x = net(in_channels=2, augment_channels=3), images(channels=2)
    h = model.augment(x)
    assert h.shape == (3, 5, 8, 8)
    assert torch.equal(h[:, :2], x)
    assert not h[:, 2:].any()
    assert model(x)[0].shape == (3, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "`in_channels` must be 1 or more, got 0"),
        ({"image_size": 0}, "`image_size` must be 1 or more, got 0"),
        ({"num_classes": 0}, "`num_classes` must be 1 or more, got 0"),
        ({"width": 0}, "`width` must be 1 or more, got 0"),
        ({"augment_channels": -1}, "`augment_channels` must be 0 or more, got -1. 0 is the plain Neural ODE."),
        ({"max_steps": 0}, "`max_steps` must be 1 or more, got 0. Leave it out for the usual 1000."),
        ({"rtol": 0.0}, "`rtol` must be above 0, got 0.0. Leave it out for the usual 1e-3."),
        ({"atol": float("nan")}, "`atol` must be above 0, got nan. Leave it out for the usual 1e-3."),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        NeuralODE(**arguments)
    assert str(error.value).startswith(message)


# --- the solution


@pytest.mark.parametrize(("tolerance", "error"), [(1e-3, 1e-2), (1e-9, 1e-7)])
def test_linear_dynamics_end_at_the_matrix_exponential(tolerance: float, error: float) -> None:
    model = net(augment_channels=2, rtol=tolerance, atol=tolerance).double()
    a, h = matrix(3), images(channels=3).double()
    make_linear(model, a)
    expected = torch.einsum("ij,bjhw->bihw", torch.linalg.matrix_exp(a), h)
    with torch.no_grad():
        assert relative_error(model.integrate(h), expected) < error


def test_every_convolution_sees_the_time() -> None:
    """The dynamics t, t and 2t, by way of the first, the second and the third convolution."""
    for conv, slope in ((0, 1.0), (1, 1.0), (2, 2.0)):
        model = precise(time_dependent=True)
        for parameter in model.dynamics.parameters():
            nn.init.zeros_(parameter)
        convs = model.dynamics.f.convs
        with torch.no_grad():
            convs[conv].weight[0, 0, convs[conv].kernel_size[0] // 2, convs[conv].kernel_size[1] // 2] = slope
            for later in list(convs)[conv + 1 :]:  # channel 0 is the time, channel 1 what the one before returns
                later.weight[0, 1, later.kernel_size[0] // 2, later.kernel_size[1] // 2] = 1.0
            h = images().double()
            torch.testing.assert_close(model.integrate(h), h + slope / 2)


def test_dynamics_are_the_three_convolutions() -> None:
    model, h = net(), images()
    first, second, third = model.dynamics.f.convs
    inner = F.relu(F.conv2d(F.relu(F.conv2d(h, first.weight, first.bias)), second.weight, second.bias, padding=1))
    torch.testing.assert_close(model.dynamics(torch.tensor(0.3), h), F.conv2d(inner, third.weight, third.bias))


# --- the gradient


def test_gradient_of_linear_dynamics_is_that_of_the_matrix_exponential() -> None:
    model, a, x = precise(augment_channels=2), matrix(3), images().double().requires_grad_()
    make_linear(model, a)
    a = a.requires_grad_()
    h = model.augment(x)
    closed = torch.einsum("ij,bjhw->bihw", torch.linalg.matrix_exp(a), h)
    of_matrix, of_images = torch.autograd.grad(closed.pow(3).sum(), (a, x))
    weight = model.dynamics.f.convs[2].weight
    actual, actual_of_images = torch.autograd.grad(model.integrate(model.augment(x)).pow(3).sum(), (weight, x))
    # A is written twice into the last convolution, the second time with a minus.
    positive, negative = actual[..., 0, 0].chunk(2, dim=1)
    assert relative_error(positive - negative, of_matrix) < 1e-6
    assert relative_error(actual_of_images, of_images) < 1e-6


@pytest.mark.parametrize("time_dependent", [False, True])
def test_adjoint_gradient_is_that_of_backpropagation_through_the_solver(
    time_dependent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Smooth dynamics: where ReLU's slope jumps, neither of the two gradients converges quickly.
    monkeypatch.setattr(F, "relu", F.softplus)
    model = precise(image_size=4, augment_channels=1, time_dependent=time_dependent)
    x = images(batch=2, size=4).double()
    logits, actual = run(model, x)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    end = odeint(model.dynamics.f, model.augment(x), times, rtol=1e-9, atol=1e-9)[-1]
    backpropagated = model.head(end.flatten(1))
    expected = torch.autograd.grad(backpropagated.square().sum(), list(model.parameters()))
    torch.testing.assert_close(logits, backpropagated)
    assert relative_error(actual, torch.cat([grad.flatten() for grad in expected])) < 1e-6


@pytest.mark.parametrize("arguments", [{}, {"augment_channels": 2, "time_dependent": True}])
def test_every_parameter_gets_a_gradient(arguments: dict) -> None:
    model = net(**arguments)
    F.cross_entropy(model(images())[0], torch.tensor([1, 2, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


# --- what is counted


def test_evaluations_are_counted_and_only_the_backward_ones_have_a_graph() -> None:
    model, calls = net(), []
    model.dynamics.f.convs[0].register_forward_hook(lambda conv, inputs, output: calls.append(output.requires_grad))
    first = model(images())[0]
    assert calls == [False] * model.evaluations
    assert model.backward_evaluations == 0
    seen = len(calls)
    model.rtol = model.atol = 1e-4
    second = model(images())[0]
    assert len(calls) - seen == model.evaluations > seen
    backward = []
    for logits in (first, second):  # not in the order of a stack
        seen = len(calls)
        logits.sum().backward()
        assert calls[seen:] == [True] * model.backward_evaluations
        backward.append(model.backward_evaluations)
    assert 0 < backward[0] < backward[1]


def test_accuracy_costs_evaluations() -> None:
    counts = []
    for tolerance in (1e-2, 1e-5, 1e-8):
        model = net(augment_channels=2, rtol=tolerance, atol=tolerance).double()
        make_linear(model, matrix(3))
        run(model, images().double())
        counts.append((model.evaluations, model.backward_evaluations))
        assert (model.evaluations - 2) % 6 == 0  # two for the first step size, six a step
    forward, backward = zip(*counts, strict=True)
    assert forward[0] < forward[1] < forward[2]
    assert backward[0] < backward[1] < backward[2]


def test_checkpoints_hold_the_parameters_alone() -> None:
    model, other, x = net(augment_channels=1), net(augment_channels=1), images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        assert model.state_dict().keys() == dict(model.named_parameters()).keys()
        assert not torch.equal(other(x)[0], model(x)[0])
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x)[0], model(x)[0])


# --- what is refused


def test_a_forward_pass_of_too_many_steps_is_given_up() -> None:
    model = net(rtol=1e-6, atol=1e-6, max_steps=2)
    with pytest.raises(IntegrationError, match=r"after 2 steps. Raise `net.max_steps`"):
        model(images())
    model.dynamics.max_steps = 1000
    model(images())  # the count starts again


def test_a_backward_pass_of_too_many_steps_is_given_up() -> None:
    model = net()
    run(model, images())
    forward, backward = ((count - 2) // 6 for count in (model.evaluations, model.backward_evaluations))
    assert forward < backward
    model.dynamics.max_steps = forward
    logits, _ = model(images())
    with pytest.raises(IntegrationError, match=rf"after {forward} steps"):
        logits.square().sum().backward()
    model.dynamics.max_steps = backward
    run(model, images())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_given_up(value: float) -> None:
    model = net()
    with pytest.raises(IntegrationError, match="values are not finite, or the dynamics too fast"):
        model(torch.full((1, 1, 8, 8), value))
    logits, _ = model(images())
    with pytest.raises(IntegrationError, match="values are not finite"):
        (value * logits).sum().backward()


# --- how it runs


def test_it_is_integrated_in_full_precision_under_autocast() -> None:
    model, dtypes = net(), set()
    expected, gradient = run(model, images())
    counts = model.evaluations, model.backward_evaluations
    model.dynamics.f.convs[0].register_forward_hook(lambda conv, inputs, output: dtypes.add(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, half_gradient = run(model, images())
    assert dtypes == {torch.float32}
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=1e-2, atol=1e-2)
    assert relative_error(half_gradient, gradient) < 2e-2
    assert (model.evaluations, model.backward_evaluations) == counts


def test_evaluation_gives_the_same_numbers() -> None:
    model = net()
    expected = model(images())[0].detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model.eval()(images())[0], expected)


@pytest.mark.slow
def test_compiled_dynamics_give_the_same_gradients_and_counts() -> None:
    model, x = net(image_size=4, time_dependent=True), images(size=4)
    expected, gradient = run(model, x)
    counts = model.evaluations, model.backward_evaluations
    graphs = []
    twin = copy.deepcopy(model)
    model.compile(backend="aot_eager")
    twin.compile(backend=lambda graph, inputs: graphs.append(graph) or graph)
    for compiled in (model, twin, copy.deepcopy(model)):
        logits, compiled_gradient = run(compiled, x)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
        assert relative_error(compiled_gradient, gradient) < 1e-5
        assert (compiled.evaluations, compiled.backward_evaluations) == counts
    once = len(graphs)
    run(twin, x)
    assert 0 < once == len(graphs)


def trainer(folder: Path, **options: object) -> pl.Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, accelerator="cpu")
    return pl.Trainer(default_root_dir=folder, limit_val_batches=1, **quiet, **options)


def test_a_task_trains_it(folder: Path) -> None:
    fast = trainer(folder, fast_dev_run=True)
    fast.fit(ImageClassification(net(augment_channels=1)), Digits())
    assert fast.callback_metrics["train_loss"].isfinite()

    task = ImageClassification(
        net(augment_channels=1), optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
    )
    fit = trainer(folder, max_epochs=1)
    fit.fit(task, Digits())
    assert fit.callback_metrics["val_acc"] > 0.7
    fit.save_checkpoint("digits.ckpt")
    loaded = ImageClassification.load_from_checkpoint("digits.ckpt", net=net(augment_channels=1))
    with torch.no_grad():
        assert torch.equal(loaded(images()), task(images()))


def test_channels_last_gives_the_same_numbers() -> None:
    first, last = ImageClassification(net()), ImageClassification(net(), channels_last=True)
    (logits, gradient), (other, other_gradient) = run(first.net, images()), run(last.net, images())
    torch.testing.assert_close(other, logits, rtol=1e-4, atol=1e-5)
    assert relative_error(other_gradient, gradient) < 1e-4


# --- the command line


COMMAND = [
    *("fit", "--config", "mnist_node", "--model.net.width", "4", "--data.batch_size", "4", "--data.val_size", "10"),
    *("--data.num_workers", "0", "--trainer.fast_dev_run", "true"),
]


@pytest.mark.parametrize("options", [[], slow(["--model.compile", "true"]), slow(["--model.channels_last", "true"])])
def test_the_command_line_trains_it(
    options: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_data.make_mnist(folder / "data", monkeypatch)
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    cli = main([*COMMAND, *options])
    assert cli.trainer.callback_metrics["train_loss"].isfinite()
    assert compiled == (["ConvDynamics"] if "--model.compile" in options else [])
    assert "gradient: of no effect, because NeuralODE has no equilibrium" in capsys.readouterr().out


def test_a_run_that_cannot_go_on_ends_with_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_data.make_mnist(folder / "data", monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        main([*COMMAND, "--model.net.max_steps", "1"])
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the Neural ODE was given up at t = ")
    assert "Raise `--model.net.max_steps`, loosen `--model.net.rtol`" in line
