"""Implicit graph neural networks: gradients on a directed graph, well-posedness, and what a graph must not notice."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch_geometric.data import Batch, Data

from deq_lightning import (
    GMRES,
    JFB,
    NPG,
    UPG,
    Anderson,
    Broyden,
    FixedPointIteration,
    GradientStrategy,
    IGNNGraphClassifier,
    IGNNNodeClassifier,
    IGNNSkipNodeClassifier,
    Implicit,
    ImplicitGraphLayer,
    JacobianPenalty,
    NormalCG,
    Status,
    Unrolled,
    spectral_radius,
)
from deq_lightning.models.base import Equilibrium
from deq_lightning.models.graphs.adjacency import Adjacency, GraphBatch, graph_batch
from deq_lightning.models.layers.projections import project_rows_to_l1_ball_

EXACT = FixedPointIteration(max_steps=1000, rtol=1e-13)


def random_graph(nodes: int = 7, edges: int = 15, features: int = 3, seed: int = 0) -> Data:
    """Return a directed graph with weights between 0 and 1 / nodes, so that ρ(A) ≤ 1."""
    g = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(nodes * nodes, generator=g)[:edges]
    return Data(
        x=torch.rand(nodes, features, generator=g, dtype=torch.float64),
        edge_index=torch.stack([pairs // nodes, pairs % nodes]),
        edge_weight=torch.rand(edges, generator=g, dtype=torch.float64) / nodes,
        y=torch.tensor([seed % 2]),
    )


def chains_graph() -> Data:
    """Return two directed chains of four nodes, normalised by row sums, the asymmetric adjacency of specs on chains."""
    sources, targets = torch.arange(8), torch.arange(1, 9)
    inside = sources % 4 != 3
    edge_index = torch.cat([torch.stack([sources, targets])[:, inside], sources.expand(2, -1)], dim=1)
    degree = torch.where(torch.arange(8) % 4 == 3, 1.0, 2.0).double()
    weight = (degree[edge_index[0]] * degree[edge_index[1]]).rsqrt()
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return Data(x=x, edge_index=edge_index, edge_weight=weight)


def dense(data: Data) -> Tensor:
    """Return A with A[s, t] the weight of the edge from s to t."""
    matrix = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.float64)
    return matrix.index_put(tuple(data.edge_index), data.edge_weight, accumulate=True)


def layer(gradient: GradientStrategy | None = None, **options: object) -> ImplicitGraphLayer:
    torch.manual_seed(0)
    model = ImplicitGraphLayer(3, 4, **{"solver": EXACT, **options}).double()
    model.gradient = gradient or Implicit(adjoint_solver=GMRES(max_steps=200, rtol=1e-13))
    return model


def solved_densely(model: ImplicitGraphLayer, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return vec(X) by Newton's method on the reference's equation, features as rows, with D and A' ⊗ W there."""
    kron = torch.kron(a.T.contiguous(), model.weight)  # vec(W X A) = (A' ⊗ W) vec(X), columns stacked
    bias = (model.omega1 @ x.T @ a).T.reshape(-1)
    state = torch.zeros_like(bias)
    eye = torch.eye(len(bias), dtype=torch.float64)
    for _ in range(50):
        slope = (kron @ state + bias > 0).double()
        state = torch.linalg.solve(eye - slope[:, None] * kron, slope * bias)
    return state, slope, kron


# --- the layer's equation and its gradients, on an adjacency that is not symmetric ---


@pytest.mark.parametrize("data", [chains_graph(), random_graph()], ids=["chains", "random"])
def test_the_equilibrium_solves_the_papers_equation(data: Data) -> None:
    model, a = layer(), dense(data)
    assert not torch.allclose(a, a.T)
    states, (equilibrium,) = model(graph_batch(data))
    x = states.T  # features as rows
    torch.testing.assert_close(x, F.relu(model.weight @ x @ a + model.omega1 @ data.x.T @ a))
    torch.testing.assert_close(states.reshape(-1), solved_densely(model, data.x, a)[0])
    assert equilibrium.solution.status.tolist() == [Status.converged]
    assert equilibrium.z.shape == (1, data.num_nodes, 4) and equilibrium.f.u.graph.tolist() == [0] * data.num_nodes


def gradients(model: ImplicitGraphLayer, data: Data, g: Tensor) -> list[Tensor]:
    """Return the gradients of <g, X> in W, Ω₁ and U."""
    x = data.x.clone().requires_grad_()
    states, _ = model(graph_batch(Data(x=x, edge_index=data.edge_index, edge_weight=data.edge_weight)))
    return list(torch.autograd.grad((states * g).sum(), [model.weight, model.omega1, x]))


def closed_form(model: ImplicitGraphLayer, data: Data, g: Tensor, series: Tensor) -> list[Tensor]:
    """Return the same gradients from the adjoint Z = D (series) g, by Z (X A)ᵀ, Z (U A)ᵀ and Ω₁ᵀ Z Aᵀ."""
    a = dense(data)
    state, slope, _ = solved_densely(model, data.x, a)
    z = (slope * (series @ g.reshape(-1))).reshape(g.shape).T
    x = state.reshape(g.shape).T
    return [z @ (x @ a).T, z @ (data.x.T @ a).T, (model.omega1.T @ z @ a.T).T]


@pytest.mark.parametrize("data", [chains_graph(), random_graph()], ids=["chains", "random"])
def test_implicit_gradients_are_those_of_dense_algebra_and_of_finite_differences(data: Data) -> None:
    model = layer()
    g = torch.randn(data.num_nodes, 4, dtype=torch.float64)
    found = gradients(model, data, g)
    _, slope, kron = solved_densely(model, data.x, dense(data))
    inverse = torch.linalg.inv(torch.eye(len(slope)).double() - (slope[:, None] * kron).T)
    for one, expected in zip(found, closed_form(model, data, g, inverse), strict=True):
        torch.testing.assert_close(one, expected)

    def value() -> float:
        return (solved_densely(model, data.x, dense(data))[0] @ g.reshape(-1)).item()

    with torch.no_grad():
        for tensor, gradient in zip([model.weight, model.omega1, data.x], found, strict=True):
            numbers = tensor.data.view(-1)
            for i in range(0, len(numbers), 3):
                before = numbers[i].item()
                numbers[i] = before + 1e-6
                above = value()
                numbers[i] = before - 1e-6
                slope_of_secant = (above - value()) / 2e-6
                numbers[i] = before
                assert gradient.reshape(-1)[i].item() == pytest.approx(slope_of_secant, rel=1e-5, abs=1e-7)


def test_the_reference_gradient_would_fail_here() -> None:
    """Its Z A Xᵀ in place of Z (X A)ᵀ is right for symmetric adjacencies only."""
    data, model = chains_graph(), layer()
    g = torch.randn(8, 4, dtype=torch.float64)
    a = dense(data)
    state, slope, kron = solved_densely(model, data.x, a)
    z = slope * torch.linalg.solve(torch.eye(32).double() - (slope[:, None] * kron).T, g.reshape(-1))
    wrong = z.reshape(8, 4).T @ a @ state.reshape(8, 4)
    right = gradients(model, data, g)[0]
    assert (wrong - right).norm() > 0.1 * right.norm()


@pytest.mark.parametrize(
    ("strategy", "k", "damping"),
    [(UPG(k=5, damping=0.5), 5, 0.5), (UPG(k=3, damping=1), 3, 1), (NPG(k=4, damping=0.8), 4, 0.8), (JFB(), 1, 1)],
    ids=repr,
)
def test_phantom_gradients_are_their_closed_forms(strategy: GradientStrategy, k: int, damping: float) -> None:
    data, model = chains_graph(), layer(strategy)
    g = torch.randn(8, 4, dtype=torch.float64)
    _, slope, kron = solved_densely(model, data.x, dense(data))
    eye = torch.eye(len(slope)).double()
    step = damping * (slope[:, None] * kron).T + (1 - damping) * eye
    series = damping * sum(torch.linalg.matrix_power(step, i) for i in range(k))
    for one, expected in zip(gradients(model, data, g), closed_form(model, data, g, series), strict=True):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize(
    "solver", [Anderson(200, 1e-12), Broyden(200, 1e-12), EXACT], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("adjoint", [Anderson(200, 1e-12), NormalCG(200, 1e-12)], ids=lambda one: type(one).__name__)
def test_solvers_agree(solver: object, adjoint: object) -> None:
    data = chains_graph()
    g = torch.randn(8, 4, dtype=torch.float64)
    expected = gradients(layer(), data, g)
    found = gradients(layer(Implicit(adjoint_solver=adjoint), solver=solver), data, g)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_the_sparse_product_in_every_mode() -> None:
    data = random_graph()
    adjacency = graph_batch(data).adjacency
    x = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(adjacency @ x, dense(data).T @ x)
    assert torch.autograd.gradcheck(lambda x: adjacency @ x, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: (adjacency @ x) ** 2, x, check_fwd_over_rev=True)
    bias = torch.randn_like(x, requires_grad=True)
    torch.testing.assert_close(adjacency.add_product(bias, x), bias + dense(data).T @ x)
    assert torch.autograd.gradcheck(adjacency.add_product, (bias, x), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(
        lambda bias, x: adjacency.add_product(bias, x) ** 2, (bias, x), check_fwd_over_rev=True
    )
    with torch.no_grad(), forward_ad.dual_level():  # as in a solve
        torch.testing.assert_close(adjacency.add_product(bias, x), bias + dense(data).T @ x)
        of_bias = adjacency.add_product(forward_ad.make_dual(bias, x), x)
        of_x = adjacency.add_product(bias, forward_ad.make_dual(x, bias))
        torch.testing.assert_close(forward_ad.unpack_dual(of_bias).tangent, x)
        torch.testing.assert_close(forward_ad.unpack_dual(of_x).tangent, dense(data).T @ bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = adjacency @ x.bfloat16()
    assert half.dtype == torch.float64
    torch.testing.assert_close(half, dense(data).T @ x.bfloat16().double())


def test_penalty_and_spectral_radius() -> None:
    data, model = chains_graph(), layer()
    _, (equilibrium,) = model(graph_batch(data))
    _, slope, kron = solved_densely(model, data.x, dense(data))
    radius = torch.linalg.eigvals(slope[:, None] * kron).abs().max()
    torch.testing.assert_close(spectral_radius(equilibrium.f, equilibrium.z, steps=32)[0], radius, rtol=1e-4, atol=1e-4)
    penalty = JacobianPenalty(probes=1000)([equilibrium], 0)
    torch.testing.assert_close(penalty, (slope[:, None] * kron).square().sum() / 32, rtol=0.2, atol=0)
    assert torch.autograd.grad(penalty, model.weight)[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_the_rounding_alone(dtype: torch.dtype) -> None:
    data, model = chains_graph().apply(lambda x: x.float() if x.is_floating_point() else x), layer().float()
    expected, _ = model(graph_batch(data))
    with torch.autocast("cpu", dtype=dtype):
        states, _ = model(graph_batch(data))
    states.sum().backward()
    assert (states - expected).norm() < 0.03 * expected.norm() and model.weight.grad.isfinite().all()


# --- well-posedness ---


def bisected(row: Tensor, radius: float) -> Tensor:
    """Project one row by bisection on the threshold."""
    if row.abs().sum() <= radius:
        return row
    low, high = 0.0, row.abs().max().item()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (row.abs() - middle).clamp_min(0).sum() > radius else (low, middle)
    return row.sign() * (row.abs() - high).clamp_min(0)


def test_the_projection_is_the_nearest_feasible_matrix() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 9, dtype=torch.float64) * torch.logspace(-2, 1, 40, dtype=torch.float64)[:, None]
    weight[3] = weight[4] = 0
    weight[5, 0] = 50
    weight[6] = 1.0  # all the same
    before, radius = weight.clone(), 0.7
    project_rows_to_l1_ball_(weight, radius)
    torch.testing.assert_close(weight, torch.stack([bisected(row, radius) for row in before]))
    inside = before.abs().sum(dim=1) <= radius
    assert 5 < inside.sum() < 35
    assert torch.equal(weight[inside], before[inside])
    torch.testing.assert_close(weight[~inside].abs().sum(dim=1), torch.full((int((~inside).sum()),), radius).double())
    # No point of the ball is nearer: the angle at the projection is obtuse towards every corner of it.
    corners = radius * torch.cat([torch.eye(9), -torch.eye(9)]).double()
    assert ((before - weight) @ corners.T <= ((before - weight) * weight).sum(dim=1, keepdim=True) + 1e-12).all()
    again = weight.clone()
    project_rows_to_l1_ball_(again, radius)
    torch.testing.assert_close(again, weight, rtol=1e-14, atol=1e-15)


def test_rows_that_are_not_finite_stay_so() -> None:
    """Then the guard sees it; the other rows are projected as ever."""
    weight = torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [2.0, 0.0]])
    project_rows_to_l1_ball_(weight, 0.5)
    assert not weight[:2].isfinite().all(dim=1).any()
    torch.testing.assert_close(weight[2], torch.tensor([0.5, 0.0]))


@pytest.mark.parametrize("seed", range(3))
def test_every_weight_contracts_once_projected(seed: int) -> None:
    """The weighted infinity norm in which it does: |W| has row sums of at most κ / ρ, and A has ρ."""
    data = random_graph(12, 40, seed=seed)
    perron = torch.linalg.eigvals(dense(data)).abs().max().item()
    model = layer(kappa=0.8, perron=perron)
    nn.init.normal_(model.weight, std=5)
    model.project([])
    kron = torch.kron(dense(data).T.contiguous(), model.weight.detach())
    assert torch.linalg.eigvals(kron.abs()).abs().max() <= 0.8 + 1e-9
    _, (equilibrium,) = model(graph_batch(data))
    assert equilibrium.solution.status.tolist() == [Status.converged]


def test_projected_when_made_and_by_the_task_never_in_evaluation() -> None:
    model = IGNNGraphClassifier(3, kappa=0.5)
    assert all(one.weight.abs().sum(dim=1).max() <= 0.5 + 1e-6 for one in model.layers)
    for one in model.layers:
        nn.init.constant_(one.weight, 0.1)
    before = copy.deepcopy(model.state_dict())
    model(Batch.from_data_list([as_floats(random_graph())]))
    model.eval()(Batch.from_data_list([as_floats(random_graph())]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.project([])
    for one in model.layers:
        torch.testing.assert_close(one.weight.abs().sum(dim=1), torch.full((64,), 0.5))


# --- graphs ---


def as_floats(data: Data) -> Data:
    return data.apply(lambda x: x.float() if x.is_floating_point() else x)


def graphs() -> list[Data]:
    """Return four graphs: two ordinary ones, one without edges, one of a single node with a loop."""
    empty = Data(
        x=torch.arange(9.0).view(3, 3).double(),
        edge_index=torch.zeros(2, 0, dtype=torch.long),
        edge_weight=torch.zeros(0, dtype=torch.float64),
        y=torch.tensor([0]),
    )
    one = torch.zeros(2, 1, dtype=torch.long)
    single = Data(x=torch.ones(1, 3).double(), edge_index=one, edge_weight=torch.ones(1).double(), y=torch.tensor([1]))
    return [random_graph(5, 9, seed=1), empty, single, random_graph(8, 20, seed=2)]


def graph_classifier(**options: object) -> IGNNGraphClassifier:
    torch.manual_seed(0)
    return IGNNGraphClassifier(3, width=6, **{"solver": EXACT, **options}).double().eval()


def node_classifiers() -> list[nn.Module]:
    torch.manual_seed(0)
    models = [
        IGNNNodeClassifier(3, 4, widths=[5, 6], solver=EXACT),
        IGNNSkipNodeClassifier(3, 4, widths=[5, 6], solver=EXACT),
    ]
    return [model.double().eval() for model in models]


def test_a_batch_of_graphs_is_the_graphs_one_by_one() -> None:
    alone, together = graphs(), Batch.from_data_list(graphs())
    for model in [graph_classifier(), *node_classifiers()]:
        prediction, equilibria = model(together)
        one_by_one = [model(Batch.from_data_list([data])) for data in alone]
        torch.testing.assert_close(prediction, torch.cat([output for output, _ in one_by_one]))
        for layer, equilibrium in enumerate(equilibria):
            assert equilibrium.solution.status.tolist() == [Status.converged] * 4
            singles = [solved[layer].solution for _, solved in one_by_one]
            assert equilibrium.solution.steps.tolist() == [solution.steps.item() for solution in singles]
        assert all(equilibrium.f.u.graph.tolist() == [0] * 5 + [1] * 3 + [2] + [3] * 8 for equilibrium in equilibria)


def test_plain_data_is_a_batch_of_one() -> None:
    for model in [graph_classifier(), *node_classifiers()]:
        data = random_graph()
        torch.testing.assert_close(model(data)[0], model(Batch.from_data_list([data]))[0])
        del data.edge_weight
        unweighted = graph_batch(data)
        assert torch.equal(unweighted.adjacency.edge_weight, torch.ones(15).double())


def test_the_order_of_nodes_and_edges_means_nothing() -> None:
    data = random_graph(9, 30)
    order, edges = torch.randperm(9), torch.randperm(30)
    place = order.argsort()
    turned = Data(x=data.x[order], edge_index=place[data.edge_index][:, edges], edge_weight=data.edge_weight[edges])
    torch.testing.assert_close(graph_classifier()(turned)[0], graph_classifier()(data)[0])
    for model in node_classifiers():
        torch.testing.assert_close(model(turned)[0], model(data)[0][order])


def test_information_flows_from_source_to_target() -> None:
    """In a chain 0 → 1 → … a change at a node is felt by those after it alone."""
    data, model = chains_graph(), layer()
    nn.init.uniform_(model.weight, 0.05, 0.2)  # nothing cancels and φ lets all of it through
    nn.init.uniform_(model.omega1, 0.5, 1)
    data.x.abs_()
    before, _ = model(graph_batch(data))
    data.x[1] += 1
    changed = ((model(graph_batch(data))[0] - before).abs() > 1e-9).any(dim=1)
    assert changed.tolist() == [False, True, True, True, False, False, False, False]


def test_equal_edges_add_up() -> None:
    edge_index = torch.tensor([[0, 0, 2], [1, 1, 1]])
    adjacency = Adjacency(edge_index, torch.tensor([0.25, 0.5, 1.0]), 3)
    expected = torch.tensor([[0.0, 0, 0], [0.75, 0, 1], [0, 0, 0]])
    torch.testing.assert_close(adjacency @ torch.eye(3), expected)
    torch.testing.assert_close(adjacency.transposed @ torch.eye(3), expected.T)
    assert adjacency.transposed.transposed is adjacency


# --- the networks ---


COUNTS = [
    (IGNNGraphClassifier, {"in_features": 35}, 37_634, 27_010),  # COX2
    (IGNNGraphClassifier, {"in_features": 3}, 33_538, 24_962),  # PROTEINS
    (IGNNGraphClassifier, {"in_features": 7}, 34_050, 25_218),  # MUTAG
    (IGNNSkipNodeClassifier, {}, 4_656_931, 3_654_826),  # PPI
    (IGNNNodeClassifier, {"in_features": 100}, 3_504, 1_888),  # chains
]


@pytest.mark.parametrize(("kind", "options", "published", "used"), COUNTS)
def test_parameter_counts(kind: type, options: dict, published: int, used: int) -> None:
    for unused_parameters, expected in ((True, published), (False, used)):
        model = kind(**options, unused_parameters=unused_parameters)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_no_parameter_is_dead_by_default() -> None:
    for model in (graph_classifier(), *node_classifiers()):
        prediction, _ = model(Batch.from_data_list(graphs()))
        prediction.square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_the_networks_compute_around_their_layers() -> None:
    data = random_graph()
    batch = graph_batch(data)
    classifier = graph_classifier()
    x = batch
    for one in classifier.layers:
        x = x._replace(features=one(x)[0])
    pooled = x.features.sum(dim=0, keepdim=True)
    expected = classifier.head[3](F.relu(classifier.head[0](pooled)))
    torch.testing.assert_close(classifier(data)[0], expected)

    plain, skip = node_classifiers()
    x = batch
    for one in plain.layers:
        x = x._replace(features=one(x)[0])
    unit = x.features / x.features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(plain(data)[0], unit @ plain.head.weight.T)

    x = batch
    for one, linear in zip(skip.layers[:-1], skip.skips[:-1], strict=True):
        x = x._replace(features=F.elu(one(x)[0] + linear(x.features)))
    expected = skip.layers[-1](x)[0] + skip.skips[-1](x.features)
    torch.testing.assert_close(skip(data)[0], expected)


def test_every_layer_reports_and_has_its_own_solve() -> None:
    data = Batch.from_data_list(graphs())
    for model in (graph_classifier(), *node_classifiers()):
        _, equilibria = model(data)
        assert len(equilibria) == len(model.layers)
        for equilibrium in equilibria:
            assert isinstance(equilibrium, Equilibrium)
            torch.testing.assert_close(equilibrium.f(equilibrium.z), equilibrium.z)


@pytest.mark.parametrize("strategy", [UPG(), NPG(), JFB(), Implicit(), Unrolled(unroll_steps=3)], ids=repr)
def test_strategies_train_the_stack(strategy: GradientStrategy) -> None:
    torch.manual_seed(0)
    model = IGNNGraphClassifier(3, width=8, dropout=0)
    data = as_floats(Batch.from_data_list([random_graph(6, 6 + 10 * (seed % 2), seed=seed) for seed in range(8)]))
    data.edge_weight *= 3
    for one in model.layers:
        one.gradient = strategy
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(data)[0], data.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.project([])
        losses.append(loss.item())
    assert math.isfinite(losses[-1]) and losses[-1] < 0.8 * losses[0]


def test_copies_and_pickles() -> None:
    model, data = graph_classifier(), Batch.from_data_list(graphs())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(data)[0], model(data)[0])


def test_the_activations_own_parameters_are_left_alone() -> None:
    activation = nn.PReLU(init=0.3)
    assert layer(activation=activation).activation.weight.item() == pytest.approx(0.3)


def test_another_activation() -> None:
    data, model = random_graph(), layer(activation=nn.Tanh())
    states = model(GraphBatch(*graph_batch(data)))[0].T
    a = dense(data)
    torch.testing.assert_close(states, torch.tanh(model.weight @ states @ a + model.omega1 @ data.x.T @ a))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (IGNNGraphClassifier, {"in_features": 0}, "`in_features` must be 1 or more, got 0."),
        (IGNNGraphClassifier, {"depth": 0}, "`depth` must be 1 or more, got 0."),
        (IGNNGraphClassifier, {"dropout": 1.0}, "`dropout` must be in [0, 1), got 1.0."),
        (IGNNGraphClassifier, {"kappa": 1.0}, "`kappa` must be in (0, 1), got 1.0."),
        (IGNNGraphClassifier, {"perron": 0.0}, "`perron` must be above 0, got 0.0."),
        (IGNNNodeClassifier, {"widths": []}, "`widths` must have one entry or more, got []. Each is a layer."),
        (
            IGNNSkipNodeClassifier,
            {"widths": [3, 0]},
            "`widths` must be 1 or more, got [3, 0].",
        ),
        (IGNNSkipNodeClassifier, {"num_classes": 0}, "`num_classes` must be 1 or more, got 0."),
    ],
)
def test_bad_arguments_are_refused(kind: type, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        kind(**arguments)
    assert str(error.value) == message
