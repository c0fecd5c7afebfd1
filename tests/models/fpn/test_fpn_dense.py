"""The dense fixed point networks: published sizes, what their latent maps compute, and how far they contract."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deq_lightning import GMRES, DenseFPN, FixedPointIteration, Implicit, Status, Unrolled
from deq_lightning.models.fpn.dense import NETWORKS
from deq_lightning.models.layers.projections import clamp_singular_values_

COUNTS = {
    "mnist_fc": 84_310,
    "mnist_conv": 84_182,
    "svhn": 153_530,
    "cifar10": 171_786,
    "cifar10_augmented": 859_848,
}
every_network = pytest.mark.parametrize("network", COUNTS)


def net(network: str, **options: object) -> DenseFPN:
    torch.manual_seed(0)
    return DenseFPN(network, **options).double().eval()


def images(network: str, batch: int = 2) -> torch.Tensor:
    shape = (1, 28, 28) if "mnist" in network else (3, 32, 32)
    return torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def largest(model: DenseFPN, layer: nn.Linear) -> float:
    return torch.linalg.matrix_norm(layer.weight.detach(), ord=2).item()


@every_network
def test_published_parameter_counts(network: str) -> None:
    assert sum(parameter.numel() for parameter in DenseFPN(network).parameters()) == COUNTS[network]


def test_what_the_latent_maps_compute() -> None:
    def slope(x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, 0.1)

    expected = {
        "mnist_fc": lambda w, z, u: 0.9 * F.relu(w(F.relu(z) + u)),
        "mnist_conv": lambda w, z, u: F.relu(w(0.99 * z + u)),
        "svhn": lambda w, z, u: 0.99 * w[2](slope(w[0](slope(z)))) + u,
        "cifar10": lambda w, z, u: w(0.99 * F.relu(z) + u),
        "cifar10_augmented": lambda w, z, u: 0.9 * slope(w[2](slope(w[0](z)))) + u,
    }
    for network, cell in expected.items():
        model = net(network)
        z, u = torch.randn(2, 3, NETWORKS[network].latent, dtype=torch.float64)
        torch.testing.assert_close(model.cell(z, u), cell(model.latent, z, u))


@every_network
def test_the_latent_map_contracts_by_its_factor_whatever_the_weights_are(network: str) -> None:
    model = net(network)
    for layer in model.latent.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    model.project([])
    z, u = torch.randn(2, 50, NETWORKS[network].latent, dtype=torch.float64)
    step = 1e-3 * torch.randn_like(z)
    growth = (model.cell(z + step, u) - model.cell(z, u)).norm(dim=1) / step.norm(dim=1)
    assert growth.max() <= 0.99 + 1e-9
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    inside = [layer for layer in layers if layer in set(model.latent.modules())]
    assert all(largest(model, layer) <= 1 + 1e-9 for layer in inside)
    assert all(largest(model, layer) <= NETWORKS[network].bound + 1e-9 for layer in layers if layer not in inside)


def test_without_bounds_nothing_is_touched() -> None:
    model = net("mnist_fc", bounded=False)
    nn.init.normal_(model.latent.weight)
    before = copy.deepcopy(model.state_dict())
    model.project([])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_clamping_gives_the_nearest_matrix_of_that_norm() -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(4, 3, dtype=torch.float64))
    values = torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64)
    weight = (left * values) @ right.T
    clamp_singular_values_(weight, 0.7)
    torch.testing.assert_close(weight, (left * values.clamp_max(0.7)) @ right.T)


@every_network
def test_the_equilibrium_and_its_gradient(network: str) -> None:
    """Equal to a long unrolling, which needs no solver and no implicit function theorem."""
    model = net(network, solver=FixedPointIteration(max_steps=4000, rtol=1e-13))
    x = images(network)
    outcomes = []
    for strategy in (Implicit(adjoint_solver=GMRES(max_steps=100, rtol=1e-12)), Unrolled(unroll_steps=300)):
        model.gradient = strategy
        logits, _ = model(x)
        parameters = list(model.parameters())
        grads = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([1, 2])), parameters)
        outcomes.append((logits, torch.cat([grad.flatten() for grad in grads])))
    (logits, grads), (long_logits, long_grads) = outcomes
    torch.testing.assert_close(logits, long_logits, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(grads, long_grads, rtol=1e-5, atol=1e-7 * long_grads.abs().max().item())


def test_one_unrolled_step_is_the_explicit_counterpart() -> None:
    model = net("mnist_fc")
    model.gradient = Unrolled(unroll_steps=1)
    x = images("mnist_fc")
    torch.testing.assert_close(model(x)[0], model.head(0.9 * F.relu(model.latent(model.encoder(x)))))


@every_network
def test_a_fresh_network_converges_in_training(network: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        _, ((_, _, solution),) = DenseFPN(network)(images(network, batch=4).float())
    assert (solution.status == Status.converged).all()


def test_the_published_softmax_before_the_loss_is_an_option() -> None:
    x = images("svhn")
    torch.testing.assert_close(net("svhn", softmax_head=True)(x)[0], net("svhn")(x)[0].softmax(dim=1))


def test_it_copies_and_pickles() -> None:
    model, x = net("cifar10"), images("cifar10")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x)[0], model(x)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "mnist"}, "`network` must be one of mnist_fc, mnist_conv, svhn, cifar10, cifar10_augmented; got"),
        ({"num_classes": 0}, "`num_classes` must be 1 or more, got 0."),
        ({"network": "cifar10", "num_classes": 53}, "`num_classes` must be at most 52 for `cifar10`, got 53."),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        DenseFPN(**arguments)
    assert str(error.value).startswith(message)
