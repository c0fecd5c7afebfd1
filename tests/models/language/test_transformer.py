"""The deep equilibrium transformer: its attention word by word, memory, masks, gradients."""

import copy
import math
import pickle
from collections.abc import Sequence

import pytest
import torch

from deq_lightning import (
    JFB,
    NPG,
    UPG,
    Anderson,
    DEQTransformer,
    FixedPointIteration,
    GradientStrategy,
    Implicit,
    NormalCG,
    Segment,
    Unrolled,
    jacobian_penalty,
)
from deq_lightning.gradients.jacobian import Jacobian
from deq_lightning.models import Memory
from deq_lightning.models.base import CellMap
from deq_lightning.models.language.attention import shift, sinusoids
from deq_lightning.models.layers.frozen import VariationalDropout, WeightNormLinear, frozen

VOCAB, WIDTH, HEADS, STREAMS = 20, 8, 2, 3
EXACT = Anderson(max_steps=300, rtol=1e-12)


def transformer(**arguments: object) -> DEQTransformer:
    """A small contractive one in float64, without dropout unless asked for, whose biases are not zero."""
    torch.manual_seed(0)
    sizes = dict(width=WIDTH, heads=HEADS, inner_width=12, cutoffs=(6, 13), div_val=2, memory_length=6)
    net = DEQTransformer(VOCAB, **{**sizes, "dropout": 0.0, "init_std": None, "solver": EXACT, **arguments}).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        net.attention.out.weight_g.mul_(3)  # the words outweigh the state
        net.attention.qkv.weight_g.mul_(0.5)
        net.feed_forward[3].weight_g.mul_(0.5)
    return net


def tokens(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (STREAMS, length), generator=torch.Generator().manual_seed(seed))


def random(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def memory(length: int) -> Memory:
    return Memory(random(STREAMS, length, WIDTH), random(STREAMS, length, 3 * WIDTH, seed=3))


def map_of(net: DEQTransformer, segment: Segment) -> CellMap:
    return CellMap(frozen(net).cell, net.inject(segment), net.separable)


def close(actual: object, expected: object, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- size and initialisation ---


def test_published_parameter_count() -> None:
    with torch.device("meta"):
        net = DEQTransformer(267_735)
        pre = DEQTransformer(267_735, norm="pre")
    tails = sum(700 * (700 // 4**i) for i in (1, 2, 3))
    for model in (net, pre):
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == 97_691_888 == 97_851_488 - tails


@pytest.mark.parametrize(("cutoffs", "div_val"), [((), 1), ((9,), 1), ((6, 13), 2), ((2, 5, 9), 2)])
def test_parameter_count_in_closed_form(cutoffs: tuple[int, ...], div_val: int) -> None:
    net, d, inner = transformer(cutoffs=cutoffs, div_val=div_val), WIDTH, 12
    edges, widths = (0, *cutoffs, VOCAB), [d // div_val**i for i in range(len(cutoffs) + 1)]
    words = sum((edges[i + 1] - edges[i]) * w for i, w in enumerate(widths)) + VOCAB + len(cutoffs) * (d + 1)
    projections = sum(d * w for w in widths) + d * d if div_val > 1 else 0
    attention = (3 * d * d + 3 * d) + (d * d + d) + (d * d + 2 * d) + 2 * d
    block = (3 * d * d + 3 * d) + attention + (inner * d + 2 * inner) + (d * inner + 2 * d)
    assert sum(parameter.numel() for parameter in net.parameters()) == words + projections + block


@pytest.mark.parametrize("std", [0.01, None])
def test_initialisation(std: float | None) -> None:
    torch.manual_seed(0)
    net = DEQTransformer(500, 64, 4, 256, (100,), 2, init_std=std)
    assert net.injection.weight.std().item() == pytest.approx(std or 1 / 8, rel=0.05)
    biases = torch.cat([net.attention.content_bias, net.attention.position_bias])
    assert biases.std().item() == pytest.approx(std or 1 / 4, rel=0.25)
    layers = [module for module in net.modules() if isinstance(module, WeightNormLinear)]
    assert len(layers) == 5
    for layer in layers:
        assert layer.normalised_weight().std().item() == pytest.approx((3 * layer.in_features) ** -0.5, rel=0.1)
        assert layer.bias is None or not layer.bias.any()
    u = net.inject(Segment(torch.randint(500, (20, 50)))).qkv
    assert not net.injection.bias.any()
    if std is None:
        assert u.std().item() == pytest.approx(1, rel=0.1)


# --- attention ---


def code(distance: int) -> torch.Tensor:
    angles = [distance * 10000 ** (-2 * j / WIDTH) for j in range(WIDTH // 2)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


def attend(net: DEQTransformer, z: torch.Tensor, u: torch.Tensor, past: int) -> torch.Tensor:
    """Attention of the positions after `past`, from its definition, for each stream, head, query and key."""
    layer, head_width = net.attention, WIDTH // HEADS
    q, k, v = (z @ layer.qkv.normalised_weight().T + u).chunk(3, dim=-1)
    result = torch.zeros_like(q)
    for stream in range(len(z)):
        for head in range(HEADS):
            part = slice(head * head_width, (head + 1) * head_width)
            content_bias, position_bias = layer.content_bias[head, 0, 0], layer.position_bias[head, 0, 0]
            for i in range(past, z.shape[1]):
                query, scores = q[stream, i, part], []
                for j in range(i + 1):
                    position = (layer.position.normalised_weight() @ code(i - j))[part]
                    content = (query + content_bias) @ k[stream, j, part]
                    scores.append((content + (query + position_bias) @ position) / math.sqrt(head_width))
                result[stream, i, part] = torch.stack(scores).softmax(0) @ v[stream, : i + 1, part]
    return (result @ layer.out.normalised_weight().T + layer.out.bias)[:, past:]


@pytest.mark.parametrize(("length", "past"), [(5, 0), (5, 6), (5, 2), (1, 4), (1, 0), (4, 9)])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_cell_from_its_definition(norm: str, length: int, past: int) -> None:
    net, z, before = transformer(norm=norm), random(STREAMS, length, WIDTH, seed=5), memory(past)
    u = net.inject(Segment(tokens(length), before if past else None))

    def layer_norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    words = net.vocabulary.embed(tokens(length)) @ net.injection.weight.T + net.injection.bias
    close(u.qkv, words)
    states = torch.cat([before.z, z], dim=1)
    states = layer_norm(states) if norm == "pre" else states
    attention = attend(net, states, torch.cat([before.u, words], dim=1), past)
    close(net.attention(states[:, past:], u), attention)
    with torch.no_grad():  # by the fused kernel
        close(net.attention(states[:, past:], u), attention)
    x = layer_norm(z + attention)
    inner, outer = net.feed_forward[0], net.feed_forward[3]
    hidden = (x @ inner.normalised_weight().T + inner.bias).clamp(min=0)
    y = x + hidden @ outer.normalised_weight().T + outer.bias
    close(net.cell(z, u), y if norm == "pre" else layer_norm(y))


@pytest.mark.parametrize(("length", "past"), [(1, 0), (4, 0), (4, 3), (3, 7)])
def test_the_shift_brings_every_distance_to_its_key(length: int, past: int) -> None:
    keys = length + past
    by_distance = random(2, length, keys + 1)
    shifted = shift(by_distance)
    assert shifted.shape == (2, length, keys)
    assert shifted.data_ptr() == by_distance[..., length - 1 :].data_ptr()  # not a copy
    for i in range(length):
        for j in range(i + past + 1):
            assert torch.equal(shifted[:, i, j], by_distance[:, i, keys - 1 - (i + past - j)])


def test_codes_go_by_falling_distance() -> None:
    close(sinusoids(5, WIDTH, like=random(1)), torch.stack([code(distance) for distance in (4, 3, 2, 1, 0)]))


def test_half_precision_tells_all_distances_apart() -> None:
    like = torch.empty(0, dtype=torch.bfloat16)
    exact = sinusoids(450, WIDTH, like=torch.empty(0, dtype=torch.float64))
    assert torch.allclose(sinusoids(450, WIDTH, like).double(), exact, rtol=0, atol=2**-8)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_no_position_sees_what_comes_later(norm: str) -> None:
    net, changed = transformer(norm=norm).eval(), tokens(6).clone()
    changed[:, 3] = (changed[:, 3] + 1) % VOCAB
    one, other = (net(Segment(words, memory(4)))[0].hidden for words in (tokens(6), changed))
    close(one[:, :3], other[:, :3], 1e-8)
    assert ((one - other)[:, 3:].abs().amax(dim=-1) > 1e-4).all()


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_segments_with_enough_memory_equal_one_long_segment(norm: str) -> None:
    """By causality the equilibrium of the first part is that of the whole, and the second part sees all of it."""
    net, words = transformer(norm=norm, memory_length=7).eval(), tokens(10)
    whole = net(Segment(words))[0].hidden
    parts, last = [], None
    for part in words.split([4, 3, 3], dim=1):
        output, _ = net(Segment(part, last))
        parts.append(output.hidden)
        last = output.memory
    close(torch.cat(parts, dim=1), whole, 1e-8)


# --- memory ---


@pytest.mark.parametrize(("limit", "lengths"), [(6, [4, 6, 6]), (3, [3, 3, 3]), (9, [4, 8, 9]), (0, [0, 0, 0])])
def test_memory_is_the_last_positions_without_a_graph(limit: int, lengths: Sequence[int]) -> None:
    net, last, z, u = transformer(memory_length=limit), None, [], []
    for i, length in enumerate(lengths):
        segment = Segment(tokens(4, seed=i), last)
        output, (equilibrium,) = net(segment)
        z.append(equilibrium.z)
        u.append(net.inject(segment).qkv)
        last = output.memory
        assert last.z.shape == (STREAMS, length, WIDTH)
        assert not last.z.requires_grad and not last.u.requires_grad
        start = 4 * (i + 1) - length
        close(last.z, torch.cat(z, dim=1)[:, start:].detach())
        close(last.u, torch.cat(u, dim=1)[:, start:].detach())


def test_a_shorter_memory_length_forgets() -> None:
    net = transformer(memory_length=6)
    net.memory_length = 3
    before = memory(6)
    after = net(Segment(tokens(2), before))[0].memory
    assert after.z.shape[1] == 3
    close(after.z[:, 0], before.z[:, -1])


def test_without_memory_segments_are_independent() -> None:
    net = transformer(memory_length=0).eval()
    first = net(Segment(tokens(4)))[0]
    close(net(Segment(tokens(4, seed=7), first.memory))[0].hidden, net(Segment(tokens(4, seed=7)))[0].hidden)


@pytest.mark.parametrize("what", ["token", "feature"])
def test_output_dropout_is_after_the_memory(what: str) -> None:
    net = transformer(output_dropout=what, dropout=0.5, solver=FixedPointIteration(max_steps=4))
    output, (equilibrium,) = net(Segment(tokens(6)))
    dropped = output.hidden == 0
    whole = dropped.all(dim=-1) if what == "token" else dropped.all(dim=1)
    assert torch.equal(dropped, (whole[..., None] if what == "token" else whole[:, None]).expand_as(dropped))
    assert dropped.any() and not dropped.all()
    close(output.memory.z, equilibrium.z.detach())
    close(output.hidden[~dropped], 2 * equilibrium.z[~dropped])


# --- dropout ---


def test_masks_are_those_of_the_published_code_and_of_one_solve() -> None:
    net = transformer(dropout=0.5, attention_dropout=0.5, solver=FixedPointIteration(max_steps=3, rtol=0))
    drops = {name: module for name, module in net.named_modules() if isinstance(module, VariationalDropout)}
    seen: dict[str, list] = {name: [] for name in drops}

    def watch(name: str) -> None:
        def hook(module: VariationalDropout, inputs: tuple, output: torch.Tensor) -> None:
            seen[name].append((module.mask, inputs[0].shape, inputs[0], output))

        drops[name].register_forward_hook(hook)

    for name in drops:
        watch(name)
    net(Segment(tokens(5), memory(2)))
    solved = {
        "attention.dropout": (HEADS * STREAMS, 5, 7),
        "attended_dropout": (STREAMS, 1, WIDTH),
        "feed_forward.2": (STREAMS, 1, 12),
        "feed_forward.4": (STREAMS, 1, WIDTH),
    }
    once = {"embedding_dropout": (STREAMS, 5, WIDTH), "attention.position_dropout": (7, WIDTH), "output_dropout": None}
    assert set(drops) == {*solved, *once}
    for name, shape in solved.items():
        masks = [mask for mask, *_ in seen[name]]
        assert len(masks) == 3 + 5  # the solver's evaluations and the phantom steps
        assert masks[0].shape == shape and set(masks[0].unique().tolist()) == {0, 2}
        assert all(mask is masks[0] for mask in masks)
    for name in once:
        assert len(seen[name]) == 1
    for name, dim in (("embedding_dropout", 1), ("attention.position_dropout", 0)):
        ((_, shape, _, output),) = seen[name]
        assert shape == once[name]
        assert torch.equal(output == 0, (output == 0).all(dim=dim, keepdim=True).expand(shape))
    first = {name: seen[name][0][0] for name in solved}
    net(Segment(tokens(5), memory(2)))
    assert all(not torch.equal(seen[name][-1][0], mask) for name, mask in first.items())


# --- the map ---


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e6])
def test_the_pre_norm_map_is_bounded(scale: float) -> None:
    net, z = transformer(norm="pre"), random(STREAMS, 5, WIDTH)
    inner, outer = net.feed_forward[0], net.feed_forward[3]
    norms = [torch.linalg.matrix_norm(layer.normalised_weight(), ord=2) for layer in (inner, outer)]
    length = math.sqrt(WIDTH)
    bound = length + norms[1] * (norms[0] * length + inner.bias.norm()) + outer.bias.norm()
    value = net.cell(scale * z, net.inject(Segment(tokens(5), memory(3))))
    assert value.norm(dim=-1).max() <= bound


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_subset_of_the_streams_is_the_same_map(norm: str) -> None:
    net = transformer(norm=norm).eval()
    f, z = map_of(net, Segment(tokens(5), memory(3))), random(STREAMS, 5, WIDTH)
    for rows in ([1], [2, 0], [0, 1, 2]):
        close(f.subset(torch.tensor(rows))(z[rows]), f(z)[rows])
    assert map_of(net.train(), Segment(tokens(5))).subset(torch.tensor([0])) is None


def test_a_stream_does_not_see_its_batch_mates() -> None:
    net, words, before = transformer().eval(), tokens(5), memory(3)
    alone = net(Segment(words[:1], Memory(before.z[:1], before.u[:1])))[0].hidden
    close(net(Segment(words, before))[0].hidden[:1], alone, 1e-8)


# --- gradients ---


def loss_of(net: DEQTransformer, gradient: GradientStrategy) -> torch.Tensor:
    net.gradient = gradient
    output, _ = net(Segment(tokens(4), memory(3)))
    return net.vocabulary.nll(output.hidden, tokens(4, seed=9)).mean()


def along(net: DEQTransformer, loss: torch.Tensor, direction: list[torch.Tensor]) -> float:
    """Return the derivative of the loss in a direction of the parameters, by autograd."""
    grads = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)
    return sum((grad * step).sum().item() for grad, step in zip(grads, direction, strict=True))


def moved(net: DEQTransformer, direction: list[torch.Tensor], size: float) -> DEQTransformer:
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter, step in zip(other.parameters(), direction, strict=True):
            parameter.add_(size * step)
    return other


def directions(net: DEQTransformer) -> list[torch.Tensor]:
    return [random(*parameter.shape, seed=20 + i) for i, parameter in enumerate(net.parameters())]


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_implicit_gradient_is_that_of_finite_differences_and_unrolling(norm: str) -> None:
    net = transformer(norm=norm)
    direction, size = directions(net), 1e-6
    implicit = along(net, loss_of(net, Implicit(adjoint_solver=Anderson(300, 1e-12))), direction)
    unrolled = along(net, loss_of(net, Unrolled(unroll_steps=120)), direction)
    ends = [loss_of(moved(net, direction, sign * size), Implicit()).item() for sign in (1, -1)]
    assert implicit == pytest.approx(unrolled, rel=1e-6)
    assert implicit == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=1e-5)


@pytest.mark.parametrize(
    "gradient",
    [Implicit(), Implicit(adjoint_solver=NormalCG()), UPG(), UPG(checkpoint=True), NPG(), JFB(), Unrolled()],
    ids=str,
)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_every_parameter_gets_a_gradient(norm: str, gradient: GradientStrategy) -> None:
    net = transformer(norm=norm, dropout=0.1, attention_dropout=0.1, output_dropout="feature", solver=Anderson())
    net.gradient = gradient
    output, _ = net(Segment(torch.arange(VOCAB).view(2, 10), Memory(*(part[:2] for part in memory(3)))))
    net.vocabulary.nll(output.hidden, torch.arange(VOCAB).view(2, 10)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("attention_dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_penalty_is_differentiated_twice(norm: str, attention_dropout: float) -> None:
    """Its gradient at a fixed state, with the same masks and probe, is that of finite differences."""
    net, z = transformer(norm=norm, dropout=0.2, attention_dropout=attention_dropout), random(STREAMS, 4, WIDTH)
    direction, size = directions(net), 1e-6

    def penalty(of: DEQTransformer) -> torch.Tensor:
        torch.manual_seed(5)
        return jacobian_penalty(map_of(of, Segment(tokens(4), memory(3))), z)

    ends = [penalty(moved(net, direction, sign * size)).item() for sign in (1, -1)]
    assert along(net, penalty(net), direction) == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=1e-5)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_forward_and_backward_products_are_of_one_jacobian(norm: str) -> None:
    net = transformer(norm=norm, dropout=0.2, attention_dropout=0.3)
    f = map_of(net, Segment(tokens(4), memory(3)))
    jacobian, v, w = Jacobian(f, random(STREAMS, 4, WIDTH)), random(STREAMS, 32, seed=4), random(STREAMS, 32, seed=6)
    close((jacobian(v) * w).sum(), (jacobian.transposed(w) * v).sum())


# --- as every model ---


def test_half_precision_computes_the_same_roughly() -> None:
    net = transformer(solver=Anderson(max_steps=20)).float()
    before = Memory(*(part.float() for part in memory(3)))
    expected = net(Segment(tokens(4), before))[0]
    with torch.autocast("cpu", torch.bfloat16):
        output, (equilibrium,) = net(Segment(tokens(4), before))
        nll = net.vocabulary.nll(output.hidden, tokens(4, seed=3))
        penalty = jacobian_penalty(equilibrium.f, equilibrium.z)
        after, _ = net(Segment(tokens(4), output.memory))
    assert output.memory.z.dtype == after.hidden.dtype == nll.dtype == torch.float32
    assert (output.hidden - expected.hidden).abs().mean() < 0.05
    (nll.sum() + penalty).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


@pytest.mark.slow
def test_a_compiled_cell_gives_the_same_gradients() -> None:
    net, other = transformer(), transformer()
    other.compile(backend="aot_eager")
    losses = [loss_of(model, Unrolled(unroll_steps=1)) for model in (net, other)]
    grads = [
        torch.autograd.grad(loss, list(model.parameters())) for loss, model in zip(losses, (net, other), strict=True)
    ]
    close(*grads)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_copies_after_use(duplicate: object) -> None:
    net = transformer(dropout=0.2, attention_dropout=0.1)
    loss_of(net, UPG()).backward()
    segment = Segment(tokens(5), memory(2))
    assert torch.equal(duplicate(net).eval()(segment)[0].hidden, net.eval()(segment)[0].hidden)


def test_state_dict_round_trip() -> None:
    net, other = transformer().eval(), DEQTransformer(VOCAB, WIDTH, HEADS, 12, (6, 13), 2, solver=EXACT).double().eval()
    other.load_state_dict(net.state_dict())
    segment = Segment(tokens(5), memory(2))
    assert torch.equal(other(segment)[0].hidden, net(segment)[0].hidden)
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "`heads` must divide `width`, got 3 for 8"),
        ({"width": 9, "heads": 3}, "`width` must be even"),
        ({"memory_length": -1}, "`memory_length` must be 0 or more, got -1"),
        ({"norm": "layer"}, "`norm` must be one of post, pre; got 'layer'"),
        ({"output_dropout": "word"}, "`output_dropout` must be one of token, feature"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"attention_dropout": -0.1}, r"`attention_dropout` must be in \[0, 1\), got -0.1"),
        ({"cutoffs": (6, 20)}, r"`cutoffs` must be increasing, above 0 and below `vocab_size`, got \[6, 20\] for 20"),
        ({"inner_width": 0}, "`inner_width` must be 1 or more"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transformer(**arguments)


def test_impossible_segments_are_refused() -> None:
    net = transformer()
    with pytest.raises(ValueError, match="as many streams as the tokens, got 3 for 2"):
        net(Segment(tokens(4)[:2], memory(3)))
    with pytest.raises(ValueError, match="words must be from 0 to vocab_size − 1 = 19, got 0 to 20"):
        net(Segment(torch.tensor([[0, 20]])))
