"""Second derivatives, and higher ones, against finite differences and closed forms."""

import gc
import weakref
from functools import partial
from itertools import product

import pytest
import torch
from support.problems import CONTRACTIVE, Recorder, matrix, newton, random, relative_error, tanh
from test_edges_of_derivatives import EXACT, SOLVER, START, STRATEGIES, TANGENTS, U, V, W, solved
from torch import nn

from deq_lightning.gradients import NPG, Implicit
from deq_lightning.gradients.adjoint import WRITTEN
from deq_lightning.solvers import GMRES, Anderson, Broyden, NormalCG
from deq_lightning.state import pack


def curve(strategy, s, u=U):
    return solved(strategy, W + s * TANGENTS[0] + s**2 * V, u + s * TANGENTS[1]).sin().sum()


def autograd(function):
    def derivative(s):
        leaf = s if s.requires_grad else s.clone().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, create_graph=True)[0]

    return derivative


def forward(function):
    return lambda s: torch.func.jvp(function, (s,), (torch.ones_like(s),))[1]


DERIVATIVES = {"autograd": autograd, "grad": torch.func.grad, "jvp": forward}
ADJOINTS = {
    "gmres": GMRES(200, 1e-13, history=60),
    "broyden": Broyden(200, 1e-13, history=200),
    "normal": NormalCG(200, 1e-13),
    "anderson": Anderson(200, 1e-13, history=30),
}


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize(("inner", "outer"), sorted({*product(DERIVATIVES, DERIVATIVES)} - {("autograd", "jvp")}))
def test_edges_second_derivatives_of_implicit(inner, outer, adjoint):
    loss = partial(curve, Implicit(adjoint_solver=ADJOINTS[adjoint]))
    second = DERIVATIVES[outer](DERIVATIVES[inner](loss))(torch.zeros((), dtype=torch.float64))
    values = [loss(step) for step in (1e-4, 0.0, -1e-4)]
    difference = (values[0] - 2 * values[1] + values[2]) / 1e-8
    assert second.item() == pytest.approx(difference.item(), rel=1e-5)


@pytest.mark.parametrize("mode", DERIVATIVES)
def test_edges_third_derivatives_of_implicit(mode):
    again, zero = DERIVATIVES[mode], torch.zeros((), dtype=torch.float64)
    second = again(again(partial(curve, EXACT)))
    difference = (second(zero + 1e-5) - second(zero - 1e-5)) / 2e-5
    assert again(second)(zero).item() == pytest.approx(difference.item(), rel=1e-7)


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_edges_hessian_products_of_every_parameter(problem):
    problem = CONTRACTIVE[problem]()
    inputs, z0 = problem.inputs, newton(problem.f, problem.z0)
    directions = [random(*part.shape, seed=4 + number) for number, part in enumerate(inputs)]

    def gradients(graph):
        z, _ = EXACT.fixed_point(problem.f, z0, SOLVER)
        return torch.autograd.grad(pack(z).sin().sum(), inputs, create_graph=graph)

    slope = sum((a * b).sum() for a, b in zip(gradients(True), directions, strict=True))
    actual = torch.cat([part.flatten() for part in torch.autograd.grad(slope, inputs)])
    shifted = []
    for step in (1e-5, -1e-5):
        for part, direction in zip(inputs, directions, strict=True):
            part.data.add_(direction, alpha=step)
        shifted.append(torch.cat([part.flatten() for part in gradients(False)]))
        for part, direction in zip(inputs, directions, strict=True):
            part.data.add_(direction, alpha=-step)
    assert relative_error(actual, (shifted[0] - shifted[1]) / 2e-5) < 1e-6


def test_edges_second_derivatives_above_radius_one():
    weight, solver = random(3, 4, seed=2), GMRES(200, 1e-13, history=60)
    big = 1.6 * matrix(4, 1.0, seed=7)

    def loss(s):
        z, _ = EXACT.fixed_point(lambda z: (1 + s) * z @ big.T + U * (1 + s**2), START, solver)
        return (weight * z).sin().sum()

    second = autograd(autograd(loss))(torch.zeros((), dtype=torch.float64))
    z = lambda s: torch.linalg.solve(torch.eye(4, dtype=torch.float64) - (1 + s) * big, (U * (1 + s**2)).T).T  # noqa: E731
    closed = lambda s: (weight * z(s)).sin().sum()  # noqa: E731
    assert second.item() == pytest.approx(autograd(autograd(closed))(torch.zeros(()).double()).item(), rel=1e-8)


def test_edges_the_gradient_is_the_same_with_a_graph():
    weight, u = W.clone().requires_grad_(), U.clone().requires_grad_()
    for strategy in STRATEGIES.values():
        plain = torch.autograd.grad(solved(strategy, weight, u).sin().sum(), [weight, u])
        again = torch.autograd.grad(solved(strategy, weight, u).sin().sum(), [weight, u], create_graph=True)
        for actual, expected in zip(again, plain, strict=True):
            assert relative_error(actual, expected) < 1e-11


def test_edges_second_derivatives_of_npg_are_those_of_its_formula():
    k, damping = 4, 0.6
    weight, u = W.clone().requires_grad_(), U.clone().requires_grad_()
    z = newton(lambda z: torch.tanh(z @ W.T + U), START)
    g = random(3, 4, seed=3)

    def formula(weight, u):
        slope = 1 - torch.tanh(z @ weight.T + u) ** 2
        jt = (slope[:, :, None] * weight).transpose(1, 2)
        b = damping * jt + (1 - damping) * torch.eye(4, dtype=torch.float64)
        w = damping * sum(torch.einsum("bij,bj->bi", torch.linalg.matrix_power(b, i), g) for i in range(k))
        return slope * w  # the gradient of the injection

    expected = torch.autograd.grad(formula(weight, u).sin().sum(), [weight, u])
    strategy = NPG(k=k, damping=damping)
    f = lambda z, weight=weight, u=u: torch.tanh(z @ weight.T + u)  # noqa: E731
    (first,) = torch.autograd.grad(strategy.attach(f, z), u, g, create_graph=True)
    actual = torch.autograd.grad(first.sin().sum(), [weight, u])

    def pulled(weight, u):
        attached = lambda u: strategy.attach(lambda z: f(z, weight, u), z)  # noqa: E731
        return torch.func.vjp(attached, u)[1](g)[0].sin().sum()

    for found in (actual, torch.func.grad(pulled, (0, 1))(W, U)):
        for one, other in zip(found, expected, strict=True):
            assert relative_error(one, other) < 1e-10


SOMEWHERE = None


class Hidden:
    """Holds a tensor where nobody would look."""

    __slots__ = ("u",)

    def __init__(self, u):
        self.u = u


@pytest.mark.parametrize("place", ["closure", "argument", "module", "object", "list", "global"])
def test_edges_second_derivatives_of_tensors_that_are_no_leaves(place):
    def gradient(u):
        holder = nn.Module()
        holder.u = u
        maps = {
            "closure": lambda z: torch.tanh(z @ W.T + u),
            "argument": partial(lambda u, z: torch.tanh(z @ W.T + u), u),
            "module": lambda z: torch.tanh(z @ W.T + holder.u),
            "object": tanh(dim=4).f,
            "list": lambda z, us=[u]: torch.tanh(z @ W.T + us[0]),
            "global": lambda z: torch.tanh(z @ W.T + SOMEWHERE),
        }
        globals()["SOMEWHERE"] = u
        if place == "object":
            problem = tanh(dim=4)
            problem.cell.weight.data, problem.u = W, u
            maps["object"] = problem.f
        loss = EXACT.fixed_point(maps[place], START, SOLVER)[0].sin().sum()
        return torch.autograd.grad(loss, u, create_graph=True)[0]

    s = torch.zeros((), dtype=torch.float64, requires_grad=True)
    first = gradient(U + s * TANGENTS[1])
    (actual,) = torch.autograd.grad((first * TANGENTS[1]).sum(), s)
    loss = lambda s: solved(EXACT, W, U + s * TANGENTS[1]).sin().sum()  # noqa: E731
    assert actual.item() == pytest.approx(autograd(autograd(loss))(torch.zeros(()).double()).item(), rel=1e-9)


def test_edges_what_a_second_derivative_cannot_know_is_said():
    hidden = Hidden(2 * U.clone().requires_grad_())
    z = EXACT.fixed_point(lambda z: torch.tanh(z @ W.T + hidden.u), START, SOLVER)[0]
    (first,) = torch.autograd.grad(z.sum(), hidden.u, retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(solved(EXACT, W, hidden.u).sum(), hidden.u)[0])
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(z.sum(), hidden.u, create_graph=True)
    assert str(caught.value) == (
        "A second derivative of `Implicit` needs every tensor that `f` depends on, and one that is not a leaf is "
        "hidden. Make it an attribute of `f` or of a module that `f` uses."
    )
    weight = W.clone().requires_grad_()
    z = solved(EXACT, weight, U)
    with torch.no_grad():
        weight.mul_(0.5)
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(z.sum(), weight, create_graph=True)
    assert str(caught.value) == WRITTEN


def test_edges_shared_inputs_are_counted_once():
    """One input of f is a function of another, and both are asked for."""

    def gradients(x):
        u = x.sin()
        z, _ = EXACT.fixed_point(lambda z: torch.tanh(z @ W.T + u + 0.1 * x), START, SOLVER)
        return torch.autograd.grad(z.sin().sum(), [x, u], create_graph=True)

    x = U.clone().requires_grad_()
    first = gradients(x)
    (actual,) = torch.autograd.grad((first[0] * TANGENTS[1]).sum(), x)
    plain = lambda x: gradients(x.requires_grad_())[0].detach()  # noqa: E731
    difference = (plain(U + 1e-5 * TANGENTS[1]) - plain(U - 1e-5 * TANGENTS[1])) / 2e-5
    assert relative_error(actual, difference) < 1e-7
    v = U.sin().requires_grad_()
    z, _ = EXACT.fixed_point(lambda z: torch.tanh(z @ W.T + v + 0.1 * U), START, SOLVER)
    torch.testing.assert_close(first[1], torch.autograd.grad(z.sin().sum(), v)[0])


def test_edges_reused_inverse_has_second_derivatives():
    strategy = Implicit(adjoint_solver=GMRES(200, 1e-12, history=60), reuse_inverse=True)

    def loss(s):
        f = lambda z: torch.tanh(z @ (W + s * TANGENTS[0]).T + U)  # noqa: E731
        return strategy.fixed_point(f, START, Broyden(200, 1e-12, history=200))[0].sin().sum()

    zero = torch.zeros((), dtype=torch.float64)
    expected = torch.func.grad(torch.func.grad(lambda s: solved(EXACT, W + s * TANGENTS[0], U).sin().sum()))(zero)
    for mode in ("autograd", "grad", "jvp"):
        assert DERIVATIVES[mode](DERIVATIVES[mode](loss))(zero).item() == pytest.approx(expected.item(), rel=1e-8)


def test_edges_complex_states_and_pytrees():
    z0 = {"a": START, "b": START[:, :3].to(torch.complex128)}
    mixing = torch.complex(random(3, 3), random(3, 3, seed=2)) / 8

    def loss(s):
        c = torch.complex(U[:, :3] * s, U[:, 1:] * (1 + s))

        def f(z):
            a = torch.tanh(z["a"] @ W.T + U * s) + 0.1 * torch.nn.functional.pad(z["b"].abs(), (0, 1))
            return {"a": a, "b": z["b"] @ mixing + c + 0.1j * z["a"][:, :3]}

        return pack(EXACT.fixed_point(f, z0, SOLVER)[0]).sin().sum()

    point = torch.full((), 0.7, dtype=torch.float64)
    first = (loss(point + 1e-6) - loss(point - 1e-6)) / 2e-6
    second = (loss(point + 1e-4) - 2 * loss(point) + loss(point - 1e-4)) / 1e-8
    for mode in DERIVATIVES.values():
        assert mode(loss)(point).item() == pytest.approx(first.item(), rel=1e-7)
        assert mode(mode(loss))(point).item() == pytest.approx(second.item(), rel=1e-4)


def test_edges_second_derivatives_under_autocast():
    """Backward runs outside of autocast, and the map it evaluates must be the one that was solved."""
    torch.manual_seed(0)
    layer, u = nn.Linear(8, 8), torch.randn(6, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = Recorder(lambda z: torch.tanh(0.5 * layer(z) + u))
        z, _ = Implicit().fixed_point(f, torch.zeros(6, 8), Anderson())
    kinds = []
    layer.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    first = torch.autograd.grad(z.sum(), layer.weight, create_graph=True)[0]
    (second,) = torch.autograd.grad(first.square().sum(), u)
    assert set(kinds) == {torch.bfloat16} and second.abs().sum() > 0


def test_edges_nothing_outlives_a_second_derivative():
    alive = []
    for _ in range(2):
        weight = W.clone().requires_grad_()
        u = 1.0 * weight[:3]
        z = solved(EXACT, weight, u)
        (first,) = torch.autograd.grad(z.sum(), weight, create_graph=True)
        first.sum().backward()
        alive += map(weakref.ref, (weight, u, z, first))
    del weight, u, z, first
    gc.collect()
    assert not any(reference() is not None for reference in alive)
