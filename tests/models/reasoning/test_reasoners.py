"""The reasoners' cells by hand, their published sizes, and what may pass where."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deq_lightning import (
    JFB,
    NPG,
    UPG,
    Anderson,
    Broyden,
    EquilibriumReasoner,
    FixedPointIteration,
    Implicit,
    RecursiveReasoner,
    Unrolled,
)
from deq_lightning.models.layers.norms import PositionNorm
from deq_lightning.models.reasoning.blocks import CUT, rms_norm, rotated

SMALL = dict(vocab_size=5, num_classes=4, positions=6, width=8, multiple=1, heads=2, inner_cycles=2)


def tokens(batch: int = 3, length: int = 6) -> Tensor:
    return torch.randint(5, (batch, length))


def reasoner(**options: object) -> RecursiveReasoner:
    torch.manual_seed(0)
    return RecursiveReasoner(**{**SMALL, **options}).double()


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- convolutional ---


def test_a_position_is_normalised_by_itself() -> None:
    x = torch.randn(2, 6, 4, 3).double()
    norm = PositionNorm(2, 6).double()
    one = x[1, :, 2, 1].view(2, 3)
    expected = (one - one.mean(1, keepdim=True)) / (one.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    assert torch.allclose(norm(x)[1, :, 2, 1], expected.flatten())


def test_sizes_of_the_sketch() -> None:
    assert count(EquilibriumReasoner()) == 14_402
    assert count(EquilibriumReasoner(3, 2, dimensions=2, width=32)) == 19_586


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_cell_by_hand(dimensions: int) -> None:
    torch.manual_seed(0)
    net = EquilibriumReasoner(2, 3, dimensions=dimensions, width=8, groups=2).double()
    x = torch.randn(2, 2, *[5] * dimensions).double()
    x[0, :, 1] = 0
    mask = (x.abs().sum(1, keepdim=True) > 0).double()
    conv = F.conv1d if dimensions == 1 else F.conv2d
    u = conv(x, net.lift.weight, net.lift.bias, padding=1)
    z = torch.randn_like(u)
    a, b, c = net.norms
    h = torch.relu(a(conv(z * mask, net.inner.weight, padding=1))) * mask
    expected = c(torch.relu(z + b(conv(h, net.outer.weight, padding=1) + u)))
    assert torch.allclose(net.cell(z, net.inject(x)), expected)


def test_nothing_passes_a_wall_and_any_size_is_taken() -> None:
    torch.manual_seed(0)
    net = EquilibriumReasoner(1, 2, width=8, groups=2, solver=FixedPointIteration(50, 0.0, keep="last")).double().eval()
    x = torch.randn(1, 1, 21).double()
    other = x.clone()
    other[..., 12:] += 1
    assert not torch.equal(net(x)[0][..., :9], net(other)[0][..., :9])
    x[..., 9:12] = other[..., 9:12] = 0
    assert torch.equal(net(x)[0][..., :9], net(other)[0][..., :9])
    assert net(torch.randn(2, 1, 64).double())[0].shape == (2, 2, 64)


def test_a_share_of_the_samples_starts_at_random_in_training() -> None:
    torch.manual_seed(0)
    net = EquilibriumReasoner(width=8, random_start=0.25, start_std=3.0)
    u = net.inject(torch.randn(4000, 1, 5))
    start = net.first_state(u)
    random = start.flatten(1).any(dim=1)
    assert random.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert start[random].std().item() == pytest.approx(3, rel=0.03)
    assert not net.eval().first_state(u).any()


@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 5), (2, 1, 5, 5)])
def test_other_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^The input must be \(batch, 1, length\), got"):
        EquilibriumReasoner(width=8)(torch.randn(shape))


# --- recursive ---


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"prefix": 16}, 5_028_866),
        ({"prefix": 16, "mixing": "attention"}, 6_828_034),
        ({}, 4_855_298),
        ({"prefix": 1, "mixing": "attention", "networks": 2, "layers": 4, "inner_cycles": 2}, 27_275_266),
    ],
    ids=["TRM", "TRM with attention", "EqR", "HRM"],
)
def test_published_sizes(options: dict[str, object], published: int) -> None:
    with torch.device("meta"):
        assert count(RecursiveReasoner(11, 11, 81, **options)) == published
        maze = RecursiveReasoner(6, 6, 900, width=128, layers=1, mixing="attention")
    assert count(maze) == 263_938


@pytest.mark.parametrize("mixing", ["positions", "attention"])
@pytest.mark.parametrize("networks", [1, 2])
def test_a_cycle_by_hand(mixing: str, networks: int) -> None:
    net = reasoner(mixing=mixing, networks=networks, prefix=2)
    u = net.inject(tokens())
    assert u.shape == (3, 8, 8) and not u[:, :2].any()
    high, low = (torch.randn_like(u) for _ in range(2))

    def network(one: torch.nn.Module, h: Tensor, injection: Tensor) -> Tensor:
        h = h + injection
        for mix, gated in zip(one.mixers, one.gated, strict=True):
            h = h + mix(h)
            h = h / (h.square().mean(1 if mixing == "positions" else 2, keepdim=True) + 1e-5).sqrt()
            gate, up = (h @ gated.gate_and_up.weight.T).chunk(2, -1)
            h = h + (gate * gate.sigmoid() * up) @ gated.down.weight.T
            h = h / (h.square().mean(2, keepdim=True) + 1e-5).sqrt()
        return h

    expected = low
    for _ in range(2):
        expected = network(net.low, expected, high + u)
    new_high, new_low = net.cell((high, low), u)
    assert torch.allclose(new_low, expected)
    assert torch.allclose(new_high, network(net.high, high, expected))
    assert (net.low is net.high) == (networks == 1)


def test_attention_sees_the_distance_of_places_alone() -> None:
    query, key = torch.randn(2, 1, 1, 8).double()
    turned = [rotated(one.expand(1, 9, 8)) for one in (query, key)]
    products = turned[0] @ turned[1].transpose(1, 2)
    assert torch.allclose(products[0].diagonal(2), products[0, 0, 2].expand(7))
    assert not torch.allclose(products[0, 0, 2], products[0, 0, 3])
    assert torch.allclose(turned[0].norm(dim=-1), query.norm().expand(1, 9))
    net = reasoner(mixing="attention")
    assert net(tokens(2, 11))[0].shape == (2, 4, 11)


def test_weights_have_the_variance_of_their_inputs() -> None:
    weight = RecursiveReasoner(5, 4, 6, width=256, mixing="attention").low.gated[0].gate_and_up.weight
    assert weight.std().item() == pytest.approx(1 / 16, rel=0.01) and weight.abs().max().item() <= 2 / 16 / CUT
    x = torch.randn(3, 5).double()
    assert torch.allclose(rms_norm(x).square().mean(-1), torch.ones(3).double(), atol=1e-4)


def test_the_published_gradient() -> None:
    """T cycles, the last one with a graph, are `FixedPointIteration(T - 1, keep="last")` and `JFB`."""
    net = reasoner(solver=FixedPointIteration(2, rtol=0, keep="last"))
    net.gradient = JFB()
    x = tokens()
    z = net.initial_state(net.inject(x))
    for _ in range(2):
        z = tuple(part.detach() for part in net.cell(z, net.inject(x)))
    expected = net.readout(net.cell(z, net.inject(x)))
    prediction = net(x)[0]
    assert torch.equal(prediction, expected)
    wanted = torch.autograd.grad(expected.square().sum(), net.low.parameters())
    got = torch.autograd.grad(prediction.square().sum(), net.low.parameters())
    assert all(torch.allclose(*pair, rtol=1e-12) for pair in zip(wanted, got, strict=True))


def test_the_last_updates_alone_are_differentiated() -> None:
    net, x = reasoner(differentiated="last"), tokens()
    u = net.inject(x)
    high, low = (torch.randn_like(u).requires_grad_() for _ in range(2))
    new_high, new_low = net.cell((high, low), u)
    middle = net.low(low, high + u).detach()
    low_by_hand = net.low(middle, high + u)
    by_hand = net.high(high, low_by_hand)
    wanted = torch.autograd.grad(by_hand.square().sum(), [high, *net.low.parameters()], retain_graph=True)
    got = torch.autograd.grad(new_high.square().sum(), [high, *net.low.parameters()], retain_graph=True)
    assert all(torch.allclose(*pair) for pair in zip(wanted, got, strict=True))
    assert torch.autograd.grad(new_low.sum(), low, allow_unused=True) == (None,)


@pytest.mark.parametrize("gradient", [UPG(), NPG(), JFB(), Implicit(), Unrolled()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("solver", [FixedPointIteration, Anderson, Broyden])
def test_every_solver_and_strategy(solver: type, gradient: object) -> None:
    for net, x in (
        (reasoner(solver=solver(4)), tokens()),
        (EquilibriumReasoner(width=8, solver=solver(4)).double(), torch.randn(3, 1, 6).double()),
    ):
        net.gradient = gradient
        net(x)[0].square().sum().backward()
        assert all(parameter.grad.isfinite().all() for name, parameter in net.named_parameters() if "halt" not in name)


def test_the_start_and_the_halting_logit() -> None:
    net = reasoner()
    high, low = net.initial_state(net.inject(tokens()))
    assert torch.equal(high, net.start[0].expand(3, 6, 8)) and torch.equal(low, net.start[1].expand(3, 6, 8))
    assert net.halting((high, low)).tolist() == [-5.0] * 3
    assert "start" in net.state_dict()


@pytest.mark.parametrize("x", [tokens(2, 5), tokens(2, 6).double(), tokens(2, 6)[:, :, None]])
def test_other_puzzles_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^The input must be tokens, \(batch, 6\), got"):
        reasoner()(x)


def test_heads_must_fit() -> None:
    with pytest.raises(ValueError, match="must divide `width` and leave an even number to each, got 3 for 8"):
        reasoner(mixing="attention", heads=3)
