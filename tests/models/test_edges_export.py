"""Every family as a graph of `torch.export`, and on the device that holds no values."""

import copy

import pytest
import torch
from support.families import FAMILIES, GRAPHS, Prediction, batch
from support.marks import slow

from deq_lightning import (
    JFB,
    MON,
    UPG,
    Anderson,
    Broyden,
    FixedPointIteration,
    Implicit,
    NeuralODE,
    Segment,
)
from deq_lightning.configured import CombinationError

LARGE = ["mdeq", "fpn", "segmentation", "mon_conv", "mon_multi", "language", "adaptive"]
FAMILY_NAMES = [slow(name) if name in LARGE else name for name in FAMILIES]
SOLVERS = [FixedPointIteration, Anderson, Broyden]


BATCH = ({0: torch.export.Dim("batch", min=1)},)


def exported(module, *inputs, shapes=BATCH):
    return torch.export.export(module, inputs, dynamic_shapes=shapes).module()


def close(graph, module, *inputs):
    torch.testing.assert_close(graph(*inputs), module(*inputs), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_edges_export_of_every_family(family):
    """Made without gradients, run with them, for batches of other sizes."""
    torch.manual_seed(0)
    net = FAMILIES[family](SOLVERS[len(family) % 3](max_steps=2, rtol=0))
    net.gradient = JFB()
    module = Prediction(net).double().eval()
    with torch.no_grad():
        graph = exported(module, batch(family, 4))
        close(graph, module, batch(family, 2))
    close(graph, module, batch(family, 5))
    close(graph, module, batch(family, 1))


@pytest.mark.slow
@pytest.mark.parametrize("family", GRAPHS)
def test_edges_export_of_graph_networks(family):
    torch.manual_seed(0)
    module = Prediction(GRAPHS[family](FixedPointIteration(max_steps=3, rtol=0))).double().eval()
    ring = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        graph = exported(module, torch.randn(4, 5).double(), ring, shapes=({0: dynamic}, {1: dynamic}))
    close(graph, module, torch.randn(4, 5).double(), ring)
    close(graph, module, torch.randn(5, 5).double(), torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]]))


@pytest.mark.parametrize(("solver", "gradient"), [(FixedPointIteration, Implicit()), slow(Anderson, UPG(k=1))])
def test_edges_export_with_a_tolerance_runs_the_budget_and_keeps_what_has_converged(solver, gradient):
    torch.manual_seed(0)
    net = MON(64, 3, 8, alpha=0.5, solver=solver(max_steps=7, rtol=1e-2, check_every=1))
    net.gradient = gradient
    module = Prediction(net).double().eval()
    x = batch("mon", 5)
    x[0] *= 1e3
    assert net(x)[1][0].solution.evaluations < 7
    graph = exported(module, batch("mon", 4))
    close(graph, module, x)
    with torch.no_grad():
        close(graph, module, x)


def test_edges_export_of_a_neural_ode_is_refused():
    with pytest.raises(CombinationError, match=r"^`NeuralODE` takes as many steps as its input asks for, and cannot"):
        exported(Prediction(NeuralODE(width=4, image_size=8)).eval(), torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize("family", [*FAMILY_NAMES, "ode"])
@pytest.mark.parametrize("training", [True, False])
def test_edges_on_the_meta_device(family, training):
    make = FAMILIES.get(family, lambda solver: NeuralODE(width=4, image_size=8))
    x = batch(family, 3).to("meta")
    x = x.float() if x.is_floating_point() else x
    expected = Prediction(make(Anderson(max_steps=2)))
    with torch.device("meta"):
        module = Prediction(make(Anderson(max_steps=2, rtol=1e-3))).train(training)
    for gradient in (UPG(k=1), Implicit()):
        module.net.gradient = gradient
        y = module(x)
        assert y.is_meta and y.dtype == torch.float32 and len(y) == 3
        y.sum().backward()
    with torch.random.fork_rng():
        module.to_empty(device="cpu").load_state_dict(copy.deepcopy(expected.state_dict()))
    inputs = batch(family, 3).float() if x.is_floating_point() else batch(family, 3)
    if not isinstance(module.net, NeuralODE):
        expected.net.gradient = module.net.gradient
        torch.testing.assert_close(module.eval()(inputs), expected.eval()(inputs))


@pytest.mark.parametrize("family", GRAPHS)
def test_edges_graph_networks_on_the_meta_device(family):
    from torch_geometric.data import Data

    with torch.device("meta"):
        net = GRAPHS[family](FixedPointIteration(max_steps=2))
    graph = Data(x=torch.randn(4, 5), edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])).to("meta")
    y, equilibria = net(graph)
    assert y.is_meta and y.shape == (1 if family == "graphs" else 4, 2) and all(one.z.is_meta for one in equilibria)
    y.sum().backward()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", [UPG(), Implicit()], ids=repr)
def test_edges_evaluation_answers_the_same_with_and_without_gradients(family, strategy):
    """And no family's samples are taken for dependent ones."""
    torch.manual_seed(0)
    net = FAMILIES[family](Anderson(max_steps=6, rtol=1e-2))
    net.gradient = strategy
    module, x = Prediction(net).double().eval(), batch(family, 4)
    with torch.no_grad():
        expected = module(x)
    torch.testing.assert_close(module(x), expected, rtol=1e-8, atol=1e-9)
    with torch.inference_mode():
        torch.testing.assert_close(module(x), expected, rtol=1e-8, atol=1e-9)
    assert net(Segment(x) if x.ndim == 2 else x)[1][0].f.separable
