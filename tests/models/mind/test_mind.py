"""MIND: sizes, who chooses, what a choice costs, and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning import JFB, MIND, UPG, FixedPointIteration, Implicit, Solver, Unrolled
from deq_lightning.configured import CombinationError
from deq_lightning.models.layers.selection import chosen
from deq_lightning.models.mind.layers import FixedPointLayer, Iteration

TIGHT = FixedPointIteration(300, rtol=1e-13)


def count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def mind(variant: str = "learned", solver: Solver = TIGHT, gradient: object = None, **options: object) -> MIND:
    torch.manual_seed(0)
    sizes = {"widths": (4, 8), "image_size": 8, "introspection_widths": (6,), "head_width": 10, "scale": 0.1}
    net = MIND(2, 3, variant=variant, solver=solver, **{"thresholds": (0.0, 0.4), **sizes, **options}).double()
    for layer in net.layers:
        layer.gradient = gradient or Implicit(adjoint_solver=TIGHT)
    return net


def images(batch: int = 5) -> Tensor:
    return torch.randn(batch, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masks(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def rows_seen(net: MIND) -> list[int]:
    """Count the rows of all evaluations of each layer's cell from now on."""
    seen = [0] * len(net.layers)
    for place, layer in enumerate(net.layers):

        def counting(z: Tensor, u: Tensor | None, place: int = place, step: nn.Module = layer.step) -> Tensor:
            seen[place] += len(z)
            return Iteration.forward(step, z, u)

        layer.step.forward = counting
    return seen


def test_parameters_are_about_those_that_the_paper_counts() -> None:
    net = MIND()
    assert count(net.introspection) == 295_939
    assert count(net) - count(net.introspection) == 4_925_650
    net = MIND(num_classes=100, selection="categorical")
    assert count(net) - count(net.introspection) == 5_008_540
    assert sum(count(stage) for stage in net.stages) == 371_712


def test_the_equilibrium_of_a_layer_solves_its_equation_from_the_activations() -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(Iteration(4, 2, 0.5), True, TIGHT).double().eval()
    v = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    z, (equilibrium,) = layer(v)
    h = 0.5 * F.group_norm(layer.step.conv(z), 2, layer.step.norm.weight, layer.step.norm.bias)
    torch.testing.assert_close(z, F.relu(h + v), rtol=0, atol=1e-11)
    assert equilibrium.solution.steps.min() > 3
    assert torch.equal(layer.initial_state(layer.inject(v)), v)


def test_layers_that_are_off_leave_the_network_an_ordinary_one() -> None:
    net, x = mind("all").eval(), images()
    plain = mind("none").eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    thought = net.think(x, masks([[0, 0]] * 5))
    torch.testing.assert_close(thought.logits, plain(x)[0], rtol=0, atol=0)
    assert plain(x)[1] == []
    assert [one.solution.steps.tolist() for one in thought.equilibria] == [[0] * 5] * 2
    assert all(one.f(one.z) is one.f.rest for one in thought.equilibria)


def test_a_sample_pays_for_its_layers_alone_and_gets_what_it_would_alone() -> None:
    net, x = mind("all", FixedPointIteration(7, rtol=0.0), UPG(k=2)).eval(), images()
    choice = masks([[1, 0], [0, 0], [1, 1], [0, 1], [0, 1]])
    alone = torch.cat([net.think(x[i : i + 1], choice[i : i + 1]).logits for i in range(5)])
    net.think(x, choice)  # looks once, with a few more evaluations, at whether samples can be told apart
    seen = rows_seen(net)
    thought = net.think(x, choice)
    assert seen == [2 * (7 + 2), 3 * (7 + 2)]
    torch.testing.assert_close(thought.logits, alone, rtol=1e-12, atol=1e-12)
    for one, on in zip(thought.equilibria, choice.T, strict=True):
        assert torch.equal(one.solution.steps, 7 * on.long())
        assert torch.equal(one.solution.residual > 0, on > 0)
        assert one.z.shape == one.solution.z.shape == one.f(one.z).shape


@pytest.mark.parametrize("batch", [1, 4])
def test_all_on_in_evaluation_is_what_training_computes(batch: int) -> None:
    net, x = mind("all").eval(), images(batch)
    together = net(x)[0]
    for layer in net.layers:
        layer.train()  # the statistics stay those of evaluation
    torch.testing.assert_close(net.train(False).think(x, masks([[1, 1]] * batch)).logits, together, rtol=0, atol=0)


def test_gradients_in_evaluation_with_a_mixed_choice_are_those_of_finite_differences() -> None:
    net, x = mind("all").eval(), images(3)
    choice = masks([[1, 0], [0, 1], [1, 1]])
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x.requires_grad_()
    (g,) = torch.autograd.grad(net.think(x, choice).logits.square().sum(), x)
    with torch.no_grad():
        ahead, back = (net.think(x + s * direction, choice).logits.square().sum() for s in (1e-6, -1e-6))
    assert (g * direction).sum().item() == pytest.approx(((ahead - back) / 2e-6).item(), rel=1e-6)


def test_a_choice_has_the_gradient_of_the_line_between_off_and_on() -> None:
    net, x = mind("all").train(), images(3)
    for stage in net.stages:
        stage.eval()
    choice = masks([[1, 0], [0, 0], [1, 1]]).requires_grad_()
    thought = net.think(x, choice)
    (g,) = torch.autograd.grad(thought.logits.sum(), choice)
    h, z = net.stages[0](x), thought.equilibria[0].z
    on = choice.detach()[:, :1, None, None]

    def rest(first: Tensor) -> Tensor:
        v = net.stages[1](net.pool(first))
        mixed = v + choice.detach()[:, 1:, None, None] * (net.layers[1](v)[0] - v)
        return net.head(net.pool(mixed)).sum()

    first = (h + on * (z - h)).detach().requires_grad_()
    (inner,) = torch.autograd.grad(rest(first), first)
    torch.testing.assert_close(g[:, 0], (inner * (z - h)).flatten(1).sum(1).detach(), rtol=1e-8, atol=1e-10)


def test_introspection_sees_an_ordinary_pass_and_neither_disturbs_it_nor_its_statistics() -> None:
    net, x = mind().train(), images()
    first = net.stages[0](x)
    before = {name: value.clone() for name, value in net.named_buffers()}
    choice = net.choose(first)
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    grads = torch.autograd.grad(choice.sum(), list(net.parameters()), allow_unused=True)
    for (name, _), g in zip(net.named_parameters(), grads, strict=True):
        assert (g is not None) == name.startswith("introspection."), name
    net.eval()
    seen = []
    net.introspection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(x)
    v1 = net.stages[0](x)
    v2 = net.stages[1](net.pool(v1))
    torch.testing.assert_close(seen[0], torch.cat([v1.mean((2, 3)), v2.mean((2, 3))], 1), rtol=1e-12, atol=1e-12)


def test_variants_choose_as_they_say() -> None:
    x = images(40)
    reduced = mind("reduced").eval()
    assert reduced.introspection[0].in_features == 4 and reduced.think(x).choice.shape == (40, 2)
    fixed = mind("fixed").eval()
    with torch.no_grad():
        plain = fixed.think(x, masks([[0, 0]] * 40)).logits.softmax(1)
        entropy = -(plain * plain.log()).sum(1) / torch.tensor(3.0).double().log()
        ranked = entropy.sort().values
        fixed.thresholds = (ranked[[4, 19]] + ranked[[5, 20]]) / 2
        choice = fixed.think(x).choice
    assert choice.sum(0).tolist() == [35, 20]
    assert torch.equal(choice[:, 1] > 0, entropy >= ranked[20])
    assert torch.equal(mind("all").eval().think(x).choice, masks([[1, 1]] * 40))
    assert mind("uniform").eval().think(x).choice.shape == (40, 1)


def test_the_uniform_variant_solves_all_stages_as_one() -> None:
    net, x = mind("uniform").eval(), images()
    logits, (one,) = net(x)
    z1, z2 = one.solution.z
    block = net.layers[0]
    first = net.stages[0](x)
    torch.testing.assert_close(z1, block.steps[0](z1, first), rtol=0, atol=1e-10)
    torch.testing.assert_close(z2, block.steps[1](z2, block.stages[0](net.pool(z1))), rtol=0, atol=1e-10)
    torch.testing.assert_close(logits, net.head(net.pool(z2)), rtol=0, atol=1e-9)


def test_in_training_the_uniform_variant_normalises_as_its_ordinary_pass() -> None:
    net, x = mind("uniform").train(), images()
    block, first = net.layers[0], net.stages[0](x)
    u = block.inject(first)
    off = block.cell(u.activations, u)
    torch.testing.assert_close(off[1], block.steps[1](u.activations[1], u.activations[1]), rtol=1e-9, atol=1e-9)
    assert int(block.stages[0].norm.num_batches_tracked) == 1


@pytest.mark.parametrize("selection", ["independent", "categorical"])
def test_choices_follow_the_logits(selection: str) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([1.0, -0.5]).expand(40_000, 2)
    shares = chosen(logits, selection, 0.5, training=True).mean(0)
    p = logits[0].sigmoid() if selection == "independent" else F.pad(logits[0], (0, 1)).softmax(0)[:2]
    torch.testing.assert_close(shares, p, rtol=0, atol=0.01)
    certain = chosen(torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, -1.0]]), selection, 0.5, training=False)
    first = [1.0, 1.0] if selection == "independent" else [0.0, 1.0]
    assert certain.tolist() == [first, [0.0, 0.0], [1.0, 0.0]]


def test_a_relaxed_choice_has_the_slope_of_its_softmax() -> None:
    logit = torch.tensor([[0.3]], requires_grad=True)
    torch.manual_seed(3)
    choice = chosen(logit, "independent", 0.7, training=True)
    torch.manual_seed(3)
    gumbels = -torch.empty(1, 1, 2).exponential_().log()
    p = ((torch.tensor([0.3, 0.0]) + gumbels) / 0.7).softmax(-1)[0, 0, 0]
    (g,) = torch.autograd.grad(choice.sum(), logit)
    assert choice.item() in (0.0, 1.0)
    assert g.item() == pytest.approx((p * (1 - p) / 0.7).item(), rel=1e-5)


class Linear(Iteration):
    """A linear step, for closed forms."""

    def __init__(self, matrix: Tensor) -> None:
        nn.Module.__init__(self)
        self.matrix = nn.Parameter(matrix)

    def forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        """Return W z + u."""
        h = torch.einsum("oi,nihw->nohw", self.matrix, z)
        return h if u is None else h + u


@pytest.mark.parametrize("injection", [True, False])
def test_one_step_gradients_of_two_linear_stages_are_those_of_the_printed_formulas(injection: bool) -> None:
    """Eq. 10 to 12 of the paper's appendix, and with an injection their counterpart through it."""
    torch.manual_seed(0)
    matrices = [0.3 * torch.randn(3, 3, dtype=torch.float64) for _ in range(2)]
    solver = FixedPointIteration(4 if not injection else 200, rtol=0.0 if not injection else 1e-14, keep="last")
    layers = [FixedPointLayer(Linear(matrix), injection, solver) for matrix in matrices]
    a, b = (torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for layer in layers:
        layer.gradient = JFB(through_start=not injection)
    x, g = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    as_image = (1, 3, 1, 1)
    z1, _ = layers[0]((a @ x).view(as_image))
    z2, _ = layers[1]((b @ z1.flatten()).view(as_image))
    (z2.flatten() @ g).backward()
    w1, w2 = matrices
    # Without an injection the solver's iterate is W⁴v, and one step more is differentiated, from a start moved along.
    identity = torch.eye(3, dtype=torch.float64)
    power = torch.linalg.matrix_power
    solve1 = (identity - w1).inverse() if injection else power(w1, 4)
    solve2 = (identity - w2).inverse() if injection else power(w2, 4)
    v1 = a.detach() @ x
    s1 = solve1 @ v1
    found1 = s1 if injection else w1 @ s1
    s2 = solve2 @ (b.detach() @ found1)
    into2 = g if injection else w2.T @ g  # dL/du and Eq. 11, dL/dz(0) = (∂f/∂z)ᵀ dL/dz*
    into1 = b.detach().T @ into2
    torch.testing.assert_close(layers[1].step.matrix.grad, torch.outer(g, s2), rtol=1e-9, atol=1e-12)  # Eq. 10, 12
    torch.testing.assert_close(b.grad, torch.outer(into2, found1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(layers[0].step.matrix.grad, torch.outer(into1, s1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a.grad, torch.outer(into1 if injection else w1.T @ into1, x), rtol=1e-9, atol=1e-12)


def test_without_an_injection_a_strategy_must_go_through_the_start() -> None:
    x = images()
    with pytest.raises(CombinationError, match=r"through_start true` or `--gradient Unrolled"):
        mind("all", gradient=UPG(), injection=False)(x)
    for gradient in (JFB(through_start=True), Unrolled(unroll_steps=3)):
        net = mind("all", gradient=gradient, injection=False)
        net(x)[0].square().sum().backward()
        assert net.stages[0].conv.weight.grad.abs().sum() > 0


def test_operations_are_counted() -> None:
    net = mind()
    once, steps = net.flops(8, 8)
    conv = [2 * 64 * 9 * 2 * 4, 2 * 16 * 9 * 4 * 8]  # two for each product, at every position
    head, introspection = 2 * (8 * 4 * 10 + 10 * 3), 2 * (12 * 6 + 6 * 2)
    assert steps == [2 * 64 * 9 * 16, 2 * 16 * 9 * 64]
    assert once == sum(conv) + head + introspection + conv[1]  # what introspection sees takes the second stage again
    assert net.training
    assert mind("none").flops(8, 8) == (sum(conv) + head, [])
    assert mind("uniform").flops(8, 8) == (sum(conv) + head, [sum(steps) + conv[1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 3}, r"`image_size` must be 4 or more for 2 stages that each divide it by 2, got 3"),
        ({"groups": 3}, r"`groups` must divide every one of `widths`, got 3 for 4"),
        ({"widths": ()}, r"`widths` must have one entry or more"),
        ({"widths": (4,), "variant": "reduced"}, r"`widths` must have 2 or more, got 1"),
        ({"variant": "fixed", "thresholds": (0.5,)}, r"`thresholds` must be one for each of `widths`, 2, got 1"),
        ({"thresholds": (0.5, 1.5)}, r"`thresholds` must be in \[0, 1\]"),
        ({"selection": "some"}, r"`selection` must be"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIND(2, 3, **{"image_size": 8, "widths": (4, 8), **options})


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_classes` must be 2 or more"):
        MIND(num_classes=1)
