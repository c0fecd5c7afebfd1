"""The three fixed point networks: published sizes, what their parts compute, and how their equilibria behave."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deq_lightning.gradients import JFB, NPG, UPG, Implicit, Unrolled
from deq_lightning.models.base import CellMap, Equilibrium
from deq_lightning.models.fpn.convolutional import FPN
from deq_lightning.models.fpn.layers import NETWORKS, resnet_block
from deq_lightning.solvers import FixedPointIteration, Status

STRATEGIES = [Implicit(), UPG(), NPG(), JFB(), Unrolled(unroll_steps=3)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def images(batch, network, size):
    return torch.randn(batch, NETWORKS[network].in_channels, size, size)


def name_of(strategy):
    return type(strategy).__name__


def zero_branches(model):
    """Make every branch of the latent blocks return 0, so that the cell has a closed form."""
    for parameter in model.latent.parameters():
        nn.init.zeros_(parameter)


# Sizes


@pytest.mark.parametrize("latent_norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    ("network", "total", "encoder", "latent", "head"),
    [
        ("mnist", 54_352, 4_896, 36_992, 12_464),
        ("svhn", 163_744 - 256, 74_640, 73_856, 14_992),
        ("cifar10", 843_430, 713_020, 110_600, 19_810),
    ],
)
def test_published_parameter_counts(network, total, encoder, latent, head, latent_norm):
    model = FPN(network, latent_norm=latent_norm)
    assert (count(model.encoder), count(model.latent), count(model.head)) == (encoder, latent, head)
    assert count(model) == total


def test_one_latent_block_gives_the_first_published_mnist_count():
    assert count(FPN("mnist", latent_blocks=1)) == 35_856


@pytest.mark.parametrize(
    ("network", "state", "features"),
    [("mnist", (32, 9, 9), 784), ("svhn", (64, 8, 8), 576), ("cifar10", (35, 10, 10), 875)],
)
def test_published_shapes(network, state, features):
    model = FPN(network).eval()
    with torch.no_grad():
        assert model.inject(images(1, network, NETWORKS[network].image_size)).shape == (1, *state)
    assert model.head[-1].in_features == features


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("size", [3, 8, 28, 32])
@pytest.mark.parametrize("network", NETWORKS)
def test_any_image_size(network, size, in_channels):
    model = FPN(network, in_channels, size, num_classes=7, solver=FixedPointIteration(max_steps=1)).eval()
    with torch.no_grad():
        logits, equilibria = model(torch.randn(2, in_channels, size, size))
    assert logits.shape == (2, 7)
    assert len(equilibria) == 1


@pytest.mark.parametrize("network", NETWORKS)
def test_narrow_networks_follow_in_proportion(network):
    model = FPN(network, image_size=8, channels=5, latent_blocks=3).eval()
    assert len(model.latent) == 3
    assert model(images(2, network, 8))[0].shape == (2, 10)


# What the parts compute


@pytest.mark.parametrize("network", ["mnist", "svhn"])
def test_gamma_scales_what_the_small_cells_return(network):
    model = FPN(network, image_size=8, gamma=0.3, latent_norm="none")
    z, u = torch.randn(2, 2, NETWORKS[network].channels, 4, 4)
    torch.testing.assert_close(model.cell(z, u), 0.3 * model.latent(z + u))
    zero_branches(model)
    torch.testing.assert_close(model.cell(z, u), 0.3 * (z + u))


def test_gamma_scales_the_state_that_enters_the_large_cell():
    model = FPN("cifar10", image_size=8, gamma=0.3, latent_norm="none")
    z, u = torch.rand(2, 2, 35, 4, 4)  # non-negative: lrelu passes them
    torch.testing.assert_close(model.cell(z, u), model.latent(u + 0.3 * z))
    zero_branches(model)
    torch.testing.assert_close(model.cell(z, u), u + 0.3 * z)
    torch.testing.assert_close(model.cell(-z, -u), 0.1**5 * (-u - 0.3 * z))


@pytest.mark.parametrize("network", ["mnist", "svhn"])
def test_latent_block_of_the_small_networks(network):
    block = FPN(network, latent_norm="group", latent_blocks=1).latent[0]
    x = torch.randn(2, NETWORKS[network].channels, 5, 5)
    first, second = (layer for layer in block.branch if isinstance(layer, nn.Conv2d))
    r = F.leaky_relu(F.conv2d(x, first.weight, first.bias, padding=1), 0.1)
    r = F.leaky_relu(F.conv2d(r, second.weight, second.bias, padding=1), 0.1)
    r = F.leaky_relu(r, 0.1)
    torch.testing.assert_close(block(x), F.group_norm(x + r, 1))


def test_latent_block_of_the_large_network():
    block = FPN("cifar10", latent_norm="group").latent[0]
    x = torch.randn(2, 35, 5, 5)
    first, second = (layer for layer in block.branch if isinstance(layer, nn.Conv2d))
    y = F.leaky_relu(F.conv2d(x, first.weight, first.bias, padding=1), 0.1)
    y = F.conv2d(y, second.weight, second.bias, padding=1)
    torch.testing.assert_close(block(x), F.group_norm(F.leaky_relu(x + y, 0.1), 1))


@pytest.mark.parametrize("size", [5, 6])
def test_resnet_shortcut_subsamples_and_adds_channels_of_zeros(size):
    block = resnet_block(4, 8, stride=2).eval()
    for parameter in block.branch.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(2, 4, size, size)
    y = block(x)
    torch.testing.assert_close(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


@pytest.mark.parametrize(
    ("network", "encoder", "head"),
    [
        ("mnist", [], [(nn.Dropout2d, 0.2)]),
        ("svhn", [(nn.Dropout2d, 0.1)] * 6, [(nn.Dropout2d, 0.2)]),
        ("cifar10", [(nn.Dropout2d, 0.15)] * 32, [(nn.Dropout, 0.1)]),
    ],
)
def test_published_dropout_and_none_in_the_cell(network, encoder, head):
    model = FPN(network)
    parts = ((model.encoder, encoder), (model.latent, []), (model.head, head))
    for part, expected in parts:
        found = [(type(layer), layer.p) for layer in part.modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]
        assert found == expected


def test_large_encoder_frames_the_image_in_grey():
    framed = FPN("cifar10").encoder[0](torch.zeros(1, 3, 32, 32))
    assert framed.shape == (1, 3, 40, 40)
    assert not framed[:, :, 4:36, 4:36].any()
    torch.testing.assert_close(framed[:, :, :4], torch.full((1, 3, 4, 40), 0.449))


def test_group_normalises_the_injection_of_every_sample():
    model = FPN("mnist").eval()
    x = images(3, "mnist", 28) * torch.tensor([1e-2, 1.0, 10.0]).reshape(3, 1, 1, 1)
    u = model.inject(x).flatten(1)
    torch.testing.assert_close(u.std(dim=1), torch.ones(3), rtol=1e-2, atol=0)


@pytest.mark.parametrize("latent_norm", ["batch", "none"])
def test_the_published_norms_leave_the_injection_as_it_is(latent_norm):
    model = FPN("mnist", latent_norm=latent_norm).eval()
    x = images(2, "mnist", 28)
    torch.testing.assert_close(model.inject(x), model.encoder(x))


# The equilibrium


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("network", "latent_norm", "gamma"),
    [
        ("mnist", "group", None),
        ("mnist", "none", None),
        ("svhn", "group", None),
        ("svhn", "none", 0.7),
        ("cifar10", "group", None),
        ("cifar10", "none", None),
    ],
)
def test_a_fresh_network_converges_within_the_default_budget(network, latent_norm, gamma, training):
    model = FPN(network, latent_norm=latent_norm, gamma=gamma).train(training)
    model.solver.rtol = 1e-4
    with torch.no_grad():
        _, (equilibrium,) = model(images(2, network, NETWORKS[network].image_size))
        z = equilibrium.z
        gap = (equilibrium.f(z) - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
    assert equilibrium.solution.status.tolist() == [Status.converged] * 2
    assert gap.max() < 2e-4
    assert z.abs().max() > 0.1  # not the trivial fixed point of a network that ignores its input


def test_svhn_without_norms_needs_a_smaller_gamma_than_the_published_one():
    model = FPN("svhn", latent_norm="none").eval()
    with torch.no_grad():
        _, (equilibrium,) = model(images(2, "svhn", 32))
    assert equilibrium.solution.status.tolist() == [Status.max_steps] * 2


def first_sample(model, x):
    """Return the logits of sample 0 and the gradients of their squares with respect to every parameter."""
    parameters = [*model.encoder.parameters(), *model.latent.parameters(), *model.head.parameters()]
    logits = model(x)[0][0]
    return logits.detach(), torch.autograd.grad(logits.square().sum(), parameters)


def training_model(network, latent_norm):
    """Return a model in training mode, but for the BatchNorm and dropout that run once, outside the cell."""
    gamma = 0.5 if latent_norm == "none" else None
    model = FPN(network, image_size=8, gamma=gamma, latent_norm=latent_norm).double().train()
    model.encoder.eval()
    model.head.eval()
    return model


@pytest.mark.parametrize("strategy", [Implicit(), UPG()], ids=name_of)
@pytest.mark.parametrize("latent_norm", ["group", "none"])
@pytest.mark.parametrize("network", NETWORKS)
def test_samples_do_not_depend_on_their_batch_mates(network, latent_norm, strategy):
    model = training_model(network, latent_norm)
    model.gradient = strategy
    x = images(3, network, 8).double()
    mates = torch.cat([x[:1], 5 * torch.randn_like(x[1:])])
    (logits, gradients), (other_logits, other_gradients) = first_sample(model, x), first_sample(model, mates)
    torch.testing.assert_close(other_logits, logits, rtol=1e-10, atol=1e-10)
    for other, gradient in zip(other_gradients, gradients, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-10 * gradient.abs().max().item())


def test_batch_norm_couples_the_samples_and_moves_its_statistics_at_every_evaluation():
    model = training_model("mnist", "batch")
    x = images(3, "mnist", 8).double()
    mates = torch.cat([x[:1], 5 * torch.randn_like(x[1:])])
    with torch.no_grad():
        logits, (equilibrium,) = model(x)
        norm = model.latent[0].after
        assert norm.num_batches_tracked == equilibrium.solution.evaluations + model.gradient.k > 1
        assert (model(mates)[0][0] - logits[0]).abs().max() > 1e-3
        model.eval()
        torch.testing.assert_close(model(x)[0][0], model(mates)[0][0])


# The gradient


@pytest.mark.parametrize("strategy", STRATEGIES, ids=name_of)
@pytest.mark.parametrize("latent_norm", ["group", "none"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_gets_a_gradient(network, latent_norm, strategy):
    # In evaluation mode: in training, the bias before a BatchNorm has no effect and rightly no gradient.
    model = FPN(network, image_size=8, gamma=0.5, latent_norm=latent_norm).eval()
    model.gradient = strategy
    logits, _ = model(images(2, network, 8))
    F.cross_entropy(logits, torch.tensor([1, 2])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("latent_norm", ["batch", "group", "none"])
def test_training_lowers_the_loss(latent_norm):
    model = FPN("mnist", image_size=8, latent_norm=latent_norm)
    model.gradient = JFB()
    x, y = images(8, "mnist", 8), torch.arange(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(x)[0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# The rescale


def test_rescaling_shrinks_every_block_by_the_same_factor_until_the_map_contracts() -> None:
    model = FPN("mnist", image_size=9, latent_norm="none", lipschitz_rescale=True).eval()
    with torch.no_grad():
        for parameter in model.latent.parameters():
            parameter.mul_(4)
    z, u = torch.randn(2, 64, 32, 3, 3)
    equilibria = [Equilibrium(CellMap(model.cell, u, separable=True), z, None)]
    with torch.no_grad():
        before = [parameter.clone() for parameter in model.latent.parameters()]
        torch.manual_seed(1)
        expansion = model.expansion(z, u)
        torch.manual_seed(1)  # the same displacement
        model.project(equilibria)
        assert expansion > model.gamma
        for old, new in zip(before, model.latent.parameters(), strict=True):
            torch.testing.assert_close(new, old * (model.gamma / expansion) ** 0.5)
        for _ in range(30):
            model.project(equilibria)
        assert model.expansion(z, u) < 1.05 * model.gamma


def test_expansion_of_a_linear_map_is_its_factor_and_then_nothing_is_rescaled() -> None:
    model = FPN("mnist", image_size=9, latent_norm="none", gamma=0.3, lipschitz_rescale=True)
    zero_branches(model)
    z, u = torch.randn(2, 2, 32, 3, 3)
    torch.testing.assert_close(model.expansion(z, u), torch.tensor(0.3))
    nn.init.ones_(model.latent[0].branch[-2].bias)  # a shift, which lengthens nothing
    with torch.no_grad():
        model.project([Equilibrium(CellMap(model.cell, u, separable=True), z, None)])
    torch.testing.assert_close(model.latent[0].branch[-2].bias, torch.ones(32))


# Arguments


def test_a_given_solver_is_used():
    solver = FixedPointIteration(max_steps=3)
    assert FPN(solver=solver).solver is solver
    assert isinstance(FPN().solver, FixedPointIteration)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "cifar"}, "`network` must be one of mnist, svhn, cifar10; got 'cifar'. Leave it out"),
        ({"latent_norm": "layer"}, "`latent_norm` must be one of batch, group, none; got 'layer'. Leave it out"),
        ({"in_channels": 0}, "`in_channels` must be 1 or more, got 0. Leave it out for the usual 1."),
        ({"image_size": 2}, "`image_size` must be 3 or more, got 2. Leave it out for the usual 28."),
        ({"num_classes": 0}, "`num_classes` must be 1 or more, got 0. Leave it out for the usual 10."),
        ({"channels": 3}, "`channels` must be 4 or more, got 3. Leave it out for the usual 32."),
        ({"latent_blocks": 0}, "`latent_blocks` must be 1 or more, got 0. Leave it out for the usual 2."),
        ({"gamma": 0.0}, "`gamma` must be in (0, 1), got 0.0. Leave it out for the usual 0.5."),
        ({"gamma": 1.0}, "`gamma` must be in (0, 1), got 1.0."),
        ({"gamma": float("nan")}, "`gamma` must be in (0, 1), got nan."),
    ],
)
def test_errors_say_what_must_hold(arguments, message):
    with pytest.raises(ValueError) as error:
        FPN(**arguments)
    assert str(error.value).startswith(message)
