"""MON: monotone by construction, both splittings solve and differentiate the same equation."""

from itertools import product

import pytest
import torch
from support.marks import slow
from support.problems import newton, random, relative_error
from torch import Tensor

from deq_lightning import (
    GMRES,
    MON,
    NPG,
    UPG,
    Anderson,
    FixedPointIteration,
    Implicit,
    MONConv,
    MONMultiTier,
    NormalCG,
    Status,
)
from deq_lightning.models.monotone.operators import MonotoneConvolution, MonotoneOperator
from deq_lightning.models.monotone.splitting import MonotoneModel
from deq_lightning.state import State, pack, parts, unpack

SPLITTINGS = {"peaceman_rachford": 1.0, "forward_backward": 0.1}
# Images of 2 channels; the maps are 5, 6, then 6, 4 and 3, and 8 and 5 pixels wide.
NETS = {
    "dense": (lambda **options: MON(in_features=18, num_classes=3, width=8, **options), 3),
    "conv": (lambda **options: MONConv(2, 3, 3, channels=3, **options), 3),
    "conv even": (lambda **options: MONConv(2, 4, 3, channels=2, **options), 4),
    "multi": (lambda **options: MONMultiTier(2, 4, 3, channels=(1, 2, 2), **options), 4),
    "multi odd": (lambda **options: MONMultiTier(2, 6, 3, channels=(1, 2), **options), 6),
}
every_net = pytest.mark.parametrize("kind", NETS)
every_splitting = pytest.mark.parametrize("splitting", SPLITTINGS)


def net(kind: str = "dense", splitting: str = "peaceman_rachford", **options: object) -> MonotoneModel:
    """Return a small network whose W is far from where it starts."""
    torch.manual_seed(0)
    options = {"solver": FixedPointIteration(max_steps=3000, rtol=1e-13), "alpha": SPLITTINGS[splitting], **options}
    model = NETS[kind][0](splitting=splitting, **options).double()
    for parameter in model.monotone.parameters():
        torch.nn.init.normal_(parameter, mean=0.0 if parameter.dim() else 1.0, std=0.5)
    return model


def images(kind: str = "dense", batch: int = 3) -> Tensor:
    size = NETS[kind][1]
    return random(batch, 2, size, size)


# --- the same by dense matrices


def convolution(weight: Tensor, size: int, stride: int = 1, rows: int | None = None) -> Tensor:
    """Return the matrix of a circular convolution, entry by entry from its definition.

    With `rows`, the map that comes out is filled up with zeros to that height and width.
    """
    out = size // stride
    shifts = [torch.eye(size).double()[(stride * torch.arange(out) + k - 1) % size] for k in range(3)]
    place = torch.eye(rows or out, out).double()
    taps = [(i, j, torch.kron(place @ shifts[i], place @ shifts[j])) for i in range(3) for j in range(3)]
    return sum(torch.kron(weight[:, :, i, j].contiguous(), tap) for i, j, tap in taps)


def tiered(operator: MonotoneConvolution) -> Tensor:
    """Return W = (1 − m) I − AᵀA + B − Bᵀ of all tiers, whose skew part cancels what is above the diagonal."""
    tiers, widths = list(operator.tiers), [tier.a.in_channels * tier.size**2 for tier in operator.tiers]
    diagonal = [convolution(t.root_g * t.a.weight / t.a.weight.norm(), t.size) for t in tiers]
    skew = torch.block_diag(*[convolution(t.h * t.b.weight / t.b.weight.norm(), t.size) for t in tiers])
    a, edges = torch.block_diag(*diagonal), torch.tensor([0, *widths]).cumsum(0).tolist()
    for i, tier in enumerate(tiers[:-1]):
        kernel = tier.down_root_g * tier.down.weight / tier.down.weight.norm()
        rows, columns = slice(edges[i + 1], edges[i + 2]), slice(edges[i], edges[i + 1])
        block = torch.zeros_like(a)
        block[rows, columns] = convolution(kernel, tier.size, stride=2, rows=tiers[i + 1].size)
        a = a + block
    gram, inside = a.T @ a, torch.block_diag(*[torch.ones(width, width).double() for width in widths])
    upper = gram.triu() * (1 - inside)
    return (1 - operator.monotonicity) * torch.eye(len(a)).double() - gram + skew - skew.T + upper - upper.T


def matrix(operator: MonotoneOperator) -> Tensor:
    return tiered(operator) if isinstance(operator, MonotoneConvolution) else operator.matrix()


def prox(model: MonotoneModel, z: Tensor) -> Tensor:
    """Return ReLU, and zero on the border of maps."""
    if isinstance(model, MON):
        return z.relu()
    masks = []
    for tier in model.monotone.tiers:
        mask = torch.ones(tier.a.in_channels, tier.size, tier.size).double()
        mask[:, [0, -1]] = mask[:, :, [0, -1]] = 0
        masks.append(mask.flatten())
    return z.relu() * torch.cat(masks)


def injection(model: MonotoneModel, x: Tensor) -> Tensor:
    """Return U x + b, with zeros for the tiers that it does not enter."""
    u = model.inject(x)
    return torch.nn.functional.pad(u.flatten(1), (0, len(pack(model.initial_state(u))[0]) - u[0].numel()))


def equilibrium(model: MonotoneModel, x: Tensor) -> Tensor:
    """Solve z = prox(W z + u) by Newton's method, without any splitting."""
    w, u = matrix(model.monotone).detach(), injection(model, x).detach()
    return newton(lambda z: prox(model, z @ w.T + u), torch.zeros_like(u), steps=50)


def learnt(model: MonotoneModel) -> list[Tensor]:
    return [*model.lift.parameters(), *model.monotone.parameters()]


def dense_gradients(model: MonotoneModel, x: Tensor) -> Tensor:
    """Differentiate the sum of squared logits through (I − D W)⁻¹ D, D the slopes of the proximal operator."""
    w, u, z = matrix(model.monotone), injection(model, x), equilibrium(model, x)
    slope = (prox(model, z @ w.T + u) > 0).double()
    leaf = z.clone().requires_grad_()
    state = unpack(leaf, model.initial_state(model.inject(x)))
    (g,) = torch.autograd.grad(model.head(parts(state)[-1]).square().sum(), leaf)
    system = torch.eye(len(w)).double() - w.detach().T @ torch.diag_embed(slope)
    v = torch.linalg.solve(system, g[..., None])[..., 0]
    return gradients((slope * v * (z @ w.T + u)).sum(), model)


def gradients(loss: Tensor, model: MonotoneModel) -> Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, learnt(model))])


# --- sizes


@pytest.mark.parametrize(
    "model, count",
    [
        pytest.param(lambda: MON(), 84_313, id="MNIST dense"),
        pytest.param(lambda: MONConv(), 79_500, id="MNIST conv"),
        pytest.param(lambda: MONConv(channels=56), 84_460, id="MNIST conv of the paper's label"),
        pytest.param(lambda: MONMultiTier(), 81_394, id="MNIST multi"),
        pytest.param(lambda: MONConv(3, 32, channels=81), 172_218, id="SVHN and CIFAR conv"),
        pytest.param(lambda: MONMultiTier(3, 32, channels=(16, 32, 60)), 170_194, id="SVHN and CIFAR multi"),
        pytest.param(lambda: MONConv(3, 32, channels=200), 853_612, id="CIFAR conv large"),
        pytest.param(lambda: MONMultiTier(3, 32, channels=(64, 128, 128)), 1_014_546, id="CIFAR multi large"),
    ],
)
def test_published_parameter_counts(model, count: int) -> None:
    assert sum(parameter.numel() for parameter in model().parameters()) == count


# --- W


def columns(f, like: State) -> Tensor:
    """Return the matrix of a linear map, column by column."""
    return pack(f(parts(unpack(torch.eye(pack(like).shape[1]).double(), like)))).T


@every_net
def test_product_transpose_and_resolvent_are_those_of_the_dense_matrix(kind: str) -> None:
    model, alpha = net(kind, monotonicity=0.3), torch.tensor(0.7).double()
    like, w = model.initial_state(model.inject(images(kind))), matrix(model.monotone).detach()
    prepared, eye = model.monotone.prepare(alpha), torch.eye(len(w)).double()
    exact = {"rtol": 0.0, "atol": 1e-12}
    torch.testing.assert_close(columns(prepared.product, like).detach(), w, **exact)
    resolvent = torch.linalg.inv(eye + alpha * (eye - w))
    torch.testing.assert_close(columns(prepared.resolvent, like).detach(), resolvent, **exact)
    point, v = random(3, len(w)).requires_grad_(), random(3, len(w), seed=5)
    for f, dense in ((prepared.product, w), (prepared.resolvent, resolvent)):
        (pulled,) = torch.autograd.grad(pack(f(parts(unpack(point, like)))), point, v)
        torch.testing.assert_close(pulled, v @ dense, **exact)


@every_net
@pytest.mark.parametrize("monotonicity", [0.1, 1.0])
def test_it_is_monotone_whatever_the_weights_are(kind: str, monotonicity: float) -> None:
    model = net(kind, monotonicity=monotonicity)
    like = model.initial_state(model.inject(images(kind)))
    for extreme in (None, 30.0, -30.0):
        for parameter in model.monotone.parameters():
            if extreme is not None and parameter.dim() == 0:
                parameter.data.fill_(extreme)
        w = columns(model.monotone.prepare(None).product, like).detach()
        symmetric = torch.eye(len(w)).double() - (w + w.T) / 2
        assert torch.linalg.eigvalsh(symmetric).min() >= monotonicity - 1e-9


# --- the equilibrium and its gradient


@every_net
@every_splitting
def test_both_splittings_find_the_equilibrium(kind: str, splitting: str) -> None:
    model, x = net(kind, splitting), images(kind)
    with torch.no_grad():
        _, ((_, z, solution),) = model(x)
    assert (solution.status == Status.converged).all()
    expected = equilibrium(model, x)
    torch.testing.assert_close(prox(model, pack(z)), expected, rtol=1e-9, atol=1e-10)
    assert (expected > 0).any(dim=1).all() and (expected == 0).any(dim=1).all()


@pytest.mark.parametrize(
    "kind, adjoint",
    [
        *product(NETS, [GMRES]),
        *(slow(kind, NormalCG) for kind in NETS if kind != "dense"),
        ("dense", NormalCG),
        ("dense", Anderson),
    ],
)
@every_splitting
def test_both_splittings_have_the_gradient_of_the_equation(kind: str, splitting: str, adjoint: type) -> None:
    model, x = net(kind, splitting), images(kind)
    model.gradient = Implicit(adjoint_solver=adjoint(max_steps=500, rtol=1e-12))
    actual = gradients(model(x)[0].square().sum(), model)
    assert relative_error(actual, dense_gradients(model, x)) < 1e-8


@pytest.mark.parametrize("strategy", [UPG(k=200, damping=1.0), NPG(k=200, damping=1.0)])
def test_long_phantom_gradients_approach_it(strategy: UPG | NPG) -> None:
    model, x = net(), images()
    model.gradient = strategy
    assert relative_error(gradients(model(x)[0].square().sum(), model), dense_gradients(model, x)) < 1e-6


@every_net
def test_alpha_changes_the_steps_and_not_the_equilibrium(kind: str) -> None:
    model, x = net(kind), images(kind)
    found, steps = [], []
    for alpha in (1.0, 0.5, 0.125):
        model.alpha.fill_(alpha)
        _, ((_, z, solution),) = model(x)
        found.append(prox(model, pack(z)))
        steps.append(solution.steps.max().item())
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found[2], found[0], rtol=1e-9, atol=1e-10)
    assert len(set(steps)) == 3


@every_net
def test_checkpoints_carry_alpha_and_maps_keep_theirs(kind: str) -> None:
    model, x = net(kind), images(kind)
    _, ((f, z, _),) = model(x)
    before = pack(f(z))
    model.alpha.fill_(0.25)
    assert torch.equal(pack(f(z)), before)
    other = net(kind)
    other.load_state_dict(model.state_dict())
    assert other.alpha == 0.25 and "alpha" not in dict(other.named_parameters())


@every_net
def test_forward_backward_beyond_its_bound_never_claims_to_have_converged(kind: str) -> None:
    model = net(kind, "forward_backward", alpha=20.0, solver=FixedPointIteration(max_steps=400, rtol=1e-6))
    with torch.no_grad():
        _, ((_, z, solution),) = model(images(kind))
    assert (solution.status != Status.converged).all() and torch.isfinite(pack(z)).all()


@pytest.mark.parametrize("kind, inverses", [("dense", 1), ("conv", 1), ("multi", 5)])
def test_what_the_resolvent_needs_is_computed_once_per_forward_pass(
    kind: str, inverses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three tiers, each has one inverse, and each but the last another one of half the size."""
    model, calls = net(kind), []
    original = torch.linalg.inv_ex
    monkeypatch.setattr(torch.linalg, "inv_ex", lambda matrix: calls.append(1) or original(matrix))
    model(images(kind))[0].sum().backward()
    assert len(calls) == inverses
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "model, size",
    [
        pytest.param(MON, (1, 28, 28), id="MNIST dense"),
        pytest.param(MONConv, (1, 28, 28), id="MNIST conv"),
        pytest.param(MONMultiTier, (1, 28, 28), id="MNIST multi"),
        pytest.param(lambda **kw: MONConv(3, 32, channels=81, **kw), (3, 32, 32), id="conv"),
        pytest.param(lambda **kw: MONMultiTier(3, 32, channels=(16, 32, 60), **kw), (3, 32, 32), id="multi"),
    ],
)
@torch.no_grad()
def test_peaceman_rachford_is_quick_at_the_published_sizes(model, size: tuple[int, ...]) -> None:
    """Under 30 steps to a relative 1e-5 at initialisation."""
    torch.manual_seed(0)
    _, ((_, _, solution),) = model(solver=FixedPointIteration(max_steps=29, rtol=1e-5))(torch.randn(1, *size))
    assert (solution.status == Status.converged).all()


@every_net
@every_splitting
def test_it_runs_in_half_precision_autocast(kind: str, splitting: str) -> None:
    model, x = net(kind, splitting, solver=FixedPointIteration(max_steps=100)).float(), images(kind).float()
    expected = model(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, ((_, z, _),) = model(x)
    logits.float().sum().backward()
    assert all(part.dtype == torch.float32 for part in parts(z))
    assert relative_error(logits.float(), expected) < 0.05
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "model, arguments",
    [
        *[
            (model, arguments)
            for model in (MON, MONConv, MONMultiTier)
            for arguments in ({"alpha": 0.0}, {"monotonicity": 0.0}, {"splitting": "douglas"}, {"num_classes": 0})
        ],
        (MON, {"width": 0}),
        (MONConv, {"channels": 0}),
        (MONConv, {"image_size": 1}),
        (MONMultiTier, {"channels": ()}),
        (MONMultiTier, {"channels": (4, 0)}),
        (MONMultiTier, {"image_size": 30}),
    ],
)
def test_bad_arguments_are_refused(model: type[MonotoneModel], arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must (be|have)"):
        model(**arguments)
