"""Whole models under `torch.func` and `torch.compile`, with every strategy."""

from functools import partial

import pytest
import torch
from support.marks import slow
from support.problems import matrix, random
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map
from torch_geometric.data import Data

from deq_lightning.gradients import JFB, NPG, UPG, Implicit, Unrolled
from deq_lightning.gradients.lifted import CHANGED
from deq_lightning.models import ImplicitGraphLayer, ImplicitModel
from deq_lightning.models.graphs.adjacency import graph_batch
from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration, NormalCG
from deq_lightning.solvers.transforms import is_batched, transformed, vectorising

STRATEGIES = {
    "implicit": Implicit(adjoint_solver=GMRES(24, 0)),
    "broyden": Implicit(adjoint_solver=Broyden(40, 0, history=40)),
    "normal": Implicit(adjoint_solver=NormalCG(60, 0)),
    "npg": NPG(),
    "upg": UPG(),
    "checkpoint": UPG(checkpoint=True),
    "jfb": JFB(),
    "unrolled": Unrolled(),
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
whole_matrices = pytest.mark.parametrize(
    "strategy", [slow(name) if name in ("normal", "broyden") else name for name in STRATEGIES]
)
X = random(5, 4, seed=9)


class Tanh(ImplicitModel):
    def __init__(self, width=6, solver=None):
        super().__init__(solver)
        self.inner, self.hidden, self.outer = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.double()
        for number, parameter in enumerate(self.parameters()):
            parameter.data = 0.2 * random(*parameter.shape, seed=number)

    def inject(self, x):
        return self.inner(x)

    def cell(self, z, u):
        return torch.tanh(self.hidden(z) + u)

    def readout(self, z):
        return self.outer(z)


def made(strategy, rtol=0.0, training=True):
    """Return a model, its parameters, and its output and loss as functions of parameters and input."""
    model = Tanh(solver=Anderson(30, rtol)).train(training)
    model.gradient = STRATEGIES[strategy]
    output = lambda parameters, x: functional_call(model, parameters, (x,))[0]  # noqa: E731
    parameters = {name: part.detach() for name, part in model.named_parameters()}
    return model, parameters, output, lambda parameters, x: output(parameters, x).sin().sum()


def stacked(function, *arguments):
    """Call a function for every tuple of arguments, and stack what it returns."""
    results = [function(*some) for some in zip(*arguments, strict=True)]
    return tree_map(lambda *parts: torch.stack(parts), *results)


def close(actual, expected):
    for one, other in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


@every_strategy
@pytest.mark.parametrize("rtol", [0, 1e-12])
@pytest.mark.parametrize("training", [True, False])
def test_edges_gradients_of_a_functional_call(strategy, rtol, training):
    model, parameters, _, loss = made(strategy, rtol, training)
    x = X.clone().requires_grad_()
    ordinary = torch.autograd.grad(model(x)[0].sin().sum(), [*model.parameters(), x])
    expected = dict(zip(parameters, ordinary, strict=False)), ordinary[-1]
    close(grad(loss, (0, 1))(parameters, X), expected)
    close(vjp(loss, parameters, X)[1](torch.ones((), dtype=torch.float64)), expected)
    called = {name: part.clone().requires_grad_() for name, part in parameters.items()}
    again = torch.autograd.grad(loss(called, X), list(called.values()), create_graph=True)
    close(again, list(expected[0].values()))
    directions = {name: random(*part.shape, seed=3) for name, part in parameters.items()}
    slope = sum((directions[name] * part).sum() for name, part in expected[0].items())
    with torch.no_grad():
        close(jvp(lambda parameters: loss(parameters, X), (parameters,), (directions,))[1], slope)


@whole_matrices
def test_edges_jacobians(strategy):
    model, parameters, output, _ = made(strategy)
    x = X.clone().requires_grad_()
    rows = [torch.autograd.grad(part, x, retain_graph=True)[0] for part in model(x)[0].flatten()]
    expected = torch.stack(rows).view(5, 3, 5, 4)
    close(jacrev(output, 1)(parameters, X), expected)
    close(jacfwd(output, 1)(parameters, X), expected)


@whole_matrices
def test_edges_hessians(strategy):
    """Forward over reverse, and reverse over reverse of the ordinary path, which is the strategy's own."""
    model, parameters, _, loss = made(strategy)
    x = X[:1].clone().requires_grad_()
    (first,) = torch.autograd.grad(model(x)[0].sin().sum(), x, create_graph=True)
    rows = [torch.autograd.grad(part, x, retain_graph=True)[0] for part in first.flatten()]
    expected = torch.stack(rows).view(1, 4, 1, 4)
    close(hessian(loss, 1)(parameters, X[:1]), expected)
    close(jacrev(jacrev(loss, 1), 1)(parameters, X[:1]), expected)


@every_strategy
@pytest.mark.parametrize("rtol", [0, 1e-3])
@pytest.mark.parametrize("training", [True, slow(False)])
def test_edges_vmap_over_samples_and_over_parameters(strategy, rtol, training):
    """The budget is spent, but what has converged stays as it is."""
    _, parameters, _, loss = made(strategy, rtol, training)
    per_sample = vmap(grad(lambda parameters, x: loss(parameters, x[None])), in_dims=(None, 0))(parameters, X)
    expected = stacked(lambda x: grad(lambda parameters: loss(parameters, x[None]))(parameters), X)
    close(per_sample, expected)
    models = {name: torch.stack([part, 0.7 * part]) for name, part in parameters.items()}
    separate = [{name: part[i] for name, part in models.items()} for i in range(2)]
    actual = vmap(grad(loss), in_dims=(0, None))(models, X)
    expected = stacked(lambda parameters: grad(loss)(parameters, X), separate)
    close(actual, expected)


@pytest.mark.parametrize("solver", [FixedPointIteration, Broyden, Anderson])
def test_edges_gradients_inside_and_outside_of_vmap(solver):
    weight, strategy = matrix(4, 0.5), STRATEGIES["implicit"]
    us = random(3, 2, 4)

    def loss(weight, u):
        f = lambda z: torch.tanh(z @ weight.T + u)  # noqa: E731
        return strategy.fixed_point(f, torch.zeros_like(u), solver(60, 0))[0].sin().sum()

    inside = grad(lambda weight: vmap(partial(loss, weight))(us).sum())(weight)
    outside = vmap(grad(loss), in_dims=(None, 0))(weight, us).sum(0)
    leaf = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(loss(leaf, u) for u in us), leaf)
    close([inside, outside], [expected, expected])


@pytest.mark.parametrize("strategy", ["implicit", "npg", "upg"])
def test_edges_graphs_under_transforms(strategy):
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
    batch = graph_batch(Data(x=random(6, 5), edge_index=edges, edge_weight=0.3 * random(8, seed=2).abs()))
    model = ImplicitGraphLayer(5, 4, solver=Anderson(40, 0)).double()
    model.gradient = STRATEGIES[strategy]
    parameters = {name: part.detach() for name, part in model.named_parameters()}
    loss = lambda parameters: functional_call(model, parameters, (batch,))[0].sin().sum()  # noqa: E731
    ordinary = torch.autograd.grad(loss(dict(model.named_parameters())), list(model.parameters()))
    close(grad(loss)(parameters), dict(zip(parameters, ordinary, strict=True)))
    models = {name: torch.stack([part, 0.7 * part]) for name, part in parameters.items()}
    expected = stacked(grad(loss), [{name: part[i] for name, part in models.items()} for i in range(2)])
    close(vmap(grad(loss))(models), expected)


@pytest.mark.parametrize("strategy", ["implicit", "npg"])
def test_edges_a_map_that_loses_its_parameters_is_refused(strategy):
    """A module of one's own under `functional_call`: when the gradient is taken, it has its old parameters again."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4).double()

        def forward(self, x):
            f = lambda z: torch.tanh(0.5 * self.layer(z) + x)  # noqa: E731
            return STRATEGIES[strategy].fixed_point(f, torch.zeros_like(x), Anderson(30, 0))[0]

    network = Network()
    parameters = {name: 0.5 * part.detach() for name, part in network.named_parameters()}
    loss = lambda parameters: functional_call(network, parameters, (X,)).sum()  # noqa: E731
    with pytest.raises(RuntimeError) as caught:
        grad(loss)(parameters)
    assert str(caught.value) == CHANGED


def test_edges_a_map_keeps_the_parameters_of_its_solve():
    model, parameters, _, _ = made("jfb")
    halves = {name: 0.5 * part for name, part in parameters.items()}
    _, (equilibrium,) = functional_call(model, halves, (X,))
    expected = torch.tanh(equilibrium.z @ halves["hidden.weight"].T + halves["hidden.bias"] + equilibrium.f.u)
    assert torch.equal(model.hidden.weight, parameters["hidden.weight"])
    torch.testing.assert_close(equilibrium.f(equilibrium.z), expected)


def test_edges_which_transforms_are_seen():
    seen = []

    def look(x):
        seen.append((transformed(), vectorising(), is_batched(x)))
        return x.sum()

    x = torch.zeros(2, 3)
    look(x), grad(look)(x), vmap(look)(x), vmap(grad(look))(x), jvp(look, (x,), (x,)), jacfwd(look)(x)
    with torch.autograd.forward_ad.dual_level():
        look(x)
    plain, differentiated, batched = (False, False, False), (True, False, False), (True, True, True)
    assert seen == [plain, differentiated, batched, batched, differentiated, (True, True, False), differentiated]


# --- compilers

COMPILED = {**STRATEGIES, "implicit": Implicit(adjoint_solver=GMRES(8, 0)), "default": Implicit()}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["implicit", "default", "npg", "jfb", "upg", "unrolled"])
def test_edges_a_training_step_is_one_graph(strategy):
    """The default adjoint solver has a tolerance; in a graph the budget is spent, but what has met it stays."""
    torch._dynamo.reset()
    model = Tanh(solver=Anderson(8, 0))
    model.gradient = COMPILED[strategy]
    step = torch.compile(lambda x: model(x)[0].sin().sum(), fullgraph=True, backend="aot_eager")
    compiled = torch.autograd.grad(step(X), list(model.parameters()))
    close(compiled, torch.autograd.grad(model(X)[0].sin().sum(), list(model.parameters())))
