"""Edges of models: samples that leave a solve, injections of every kind, warm starts, what is drawn anew."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from deq_lightning import (
    JFB,
    UPG,
    Anderson,
    Broyden,
    DEQTransformer,
    FixedPointIteration,
    IGNNNodeClassifier,
    Implicit,
    ImplicitModel,
    Segment,
    Shared,
    Solution,
    Status,
    Unrolled,
)
from deq_lightning.models import VariationalDropout

SAID = ("is evaluated for all samples until the last has converged", "are solved together")


@dataclass
class Pair:
    """A dataclass that PyTorch has never heard of."""

    u: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Frozen:
    """One that refuses assignments and has a field which the constructor does not take."""

    u: Tensor
    slope: Tensor
    name: str = "frozen"


class Bag:
    """An object of no known kind."""

    def __init__(self, u, slope):
        self.u, self.slope = u, slope


class Named(NamedTuple):
    u: Tensor
    slope: Tensor


class Positions(Shared):
    def __init__(self, codes):
        self.codes = codes


class Model(ImplicitModel):
    """z = tanh(slope z + u), sample by sample, as slow as the input says; `cell` is replaced by the tests."""

    def __init__(self, pack, cell, solver=None):
        super().__init__(solver or FixedPointIteration(max_steps=500, rtol=1e-9, check_every=1))
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.pack, self.map = pack, cell
        self.rows: list[int] = []

    def inject(self, x):
        return self.pack(x, self)

    def cell(self, z, u):
        self.rows.append(len(z))
        return self.map(z, u)

    def initial_state(self, u):
        return self.scale.new_zeros(self.batch, 4)

    def readout(self, z):
        return z

    def forward(self, x, start=None):
        self.batch = len(x)
        return super().forward(x, start)


def inputs(batch: int = 6) -> Tensor:
    """Return inputs whose first column is how slow a sample is: all but one settle early."""
    x = torch.randn(batch, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 0.01
    x[1, 0] = 0.9
    return x


def plain(z, u):
    return torch.tanh(u.slope * z + u.u)


def of(kind):
    return lambda x, model: kind(x[:, 1:], x[:, :1])


def reference(model, x):
    """Return the equilibrium of the whole batch, iterated far beyond any tolerance."""
    model.batch = len(x)
    u, z = model.inject(x), torch.zeros(len(x), 4, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2000):
            z = model.map(z, u)
    return z


def answer(model, x):
    with torch.no_grad():
        return model.eval()(x)[0]


def says(record) -> list[str]:
    return [str(warning.message) for warning in record if any(words in str(warning.message) for words in SAID)]


def evaluated(model, x):
    """Return the answer, what was said, and the sizes of the batches that were evaluated."""
    model.rows.clear()
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        z = answer(model, x)
    return z, says(record), list(model.rows)


@pytest.mark.parametrize("kind", [Named, Pair, Frozen], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("solver", [FixedPointIteration, Anderson, Broyden])
def test_edges_known_containers_lose_samples(kind, solver):
    model = Model(of(kind), plain, solver(max_steps=500, rtol=1e-9, check_every=1))
    z, said, rows = evaluated(model, inputs())
    torch.testing.assert_close(z, reference(model, inputs()), rtol=0, atol=1e-7)
    assert said == [] and min(rows) < 6


def test_edges_an_unknown_container_keeps_all_samples_and_says_so_once():
    model = Model(of(Bag), plain)
    z, said, rows = evaluated(model, inputs())
    assert said == [
        "`Model` is evaluated for all samples until the last has converged: its injection holds a `Bag`; a tuple, a "
        "dict or a dataclass would be known."
    ]
    assert set(rows) == {6} and not model(inputs())[1][0].f.subset(torch.tensor([0]))
    torch.testing.assert_close(z, reference(model, inputs()), rtol=0, atol=1e-7)
    again, said, _ = evaluated(model, inputs())
    assert said == [] and torch.equal(again, z)


def mean(z, u):
    return plain(z, u) + 0.2 * z.mean(0)


def scaled_by_the_batch(z, u):
    return plain(z, u) / (1 + z.square().mean(0))


def competing(z, u):
    return plain(z, u) + 0.1 * z.softmax(dim=0)


@pytest.mark.parametrize("cell", [mean, scaled_by_the_batch, competing], ids=lambda cell: cell.__name__)
@pytest.mark.parametrize("solver", [FixedPointIteration, Anderson, Broyden])
@pytest.mark.parametrize("still", [0, 3], ids=["", "some_start_settled"])
def test_edges_samples_that_interact_are_solved_together(cell, solver, still):
    x = inputs()
    x[3 : 3 + still] = 0  # where they are zero, these have nothing to do at the first evaluation
    model = Model(of(Named), cell, solver(max_steps=500, rtol=1e-10, check_every=1))
    exact = reference(model, x)
    for _ in range(3):
        z, _, rows = evaluated(model, x)
        torch.testing.assert_close(z, exact, rtol=0, atol=1e-7)
    assert set(rows) == {6}
    solution = model(x)[1][0].solution
    claimed, f = solution.residual, model(x)[1][0].f
    true = (f(solution.z) - solution.z).norm(dim=1) / f(solution.z).norm(dim=1)
    torch.testing.assert_close(claimed, true.nan_to_num().detach(), rtol=1e-2, atol=1e-13)
    assert (solution.status == Status.converged).all() and solution.steps.tolist() == [solution.evaluations] * 6


def test_edges_interaction_is_said_once():
    model = Model(of(Named), mean)
    assert evaluated(model, inputs())[1] == [
        "the samples of `Model` are solved together: its cell gives other values where some of them are left out. "
        "If it takes each by itself, its injection must hold tensors with the batch as dimension 0, and what samples "
        "share in a container that derives from `deq_lightning.Shared`."
    ]
    _, said, rows = evaluated(model, inputs())
    assert said == [] and set(rows) == {6}


def test_edges_samples_that_learn_to_interact_are_noticed():
    """Zero at first, as gates are."""
    model = Model(of(Named), lambda z, u: plain(z, u) + (model.scale - 1) * z.mean(0))
    assert min(evaluated(model, inputs())[2]) < 6
    with torch.no_grad():
        model.scale += 0.2
    for _ in range(2):
        z, _, rows = evaluated(model, inputs())
        torch.testing.assert_close(z, reference(model, inputs()), rtol=0, atol=1e-7)
    assert set(rows) == {6}


@pytest.mark.parametrize("sizes", [(6, 2), (6, 4), (4, 6), (2, 4)], ids=str)
def test_edges_tensors_without_a_batch_are_passed_whole(sizes):
    """A shared scale of shape (width,), and positions; in a batch of that length they look like samples."""
    codes = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = Model(
        lambda x, model: (x[:, 1:], x[:, :1], model.scale, codes),
        lambda z, u: torch.tanh(u[1] * z * u[2] + u[0] + z.mean(1, keepdim=True) * u[3].mean(0)),
    )
    with torch.no_grad():
        model.scale.copy_(torch.tensor([0.9, 0.1, 0.5, 1.0]))
    for size in sizes:
        for _ in range(2):
            z, _, rows = evaluated(model, inputs(size))
            torch.testing.assert_close(z, reference(model, inputs(size)), rtol=0, atol=1e-7)
        assert (min(rows) < size) == (size != 4 or sizes[0] != 4)


def test_edges_what_is_marked_as_shared_is_passed_whole_in_any_batch():
    model = Model(
        lambda x, model: {"u": x[:, 1:], "slope": x[:, :1], "at": Positions(model.scale)},
        lambda z, u: torch.tanh(u["slope"] * z * u["at"].codes + u["u"]),
    )
    z, said, rows = evaluated(model, inputs(4))
    assert said == [] and min(rows) < 4
    torch.testing.assert_close(z, reference(model, inputs(4)), rtol=0, atol=1e-7)


def test_edges_a_batch_that_shrinks_to_the_length_of_the_positions():
    """What was whole stays whole, however few samples are left."""
    x = inputs(12)
    x[:, 0] = torch.tensor([0.01] * 8 + [0.9, 0.95, 0.97, 0.99])
    codes = torch.arange(1.0, 5.0, dtype=torch.float64)[:, None].expand(4, 4)
    model = Model(
        lambda x, model: (x[:, 1:], x[:, :1], codes),
        lambda z, u: torch.tanh(u[1] * z + u[0] / u[2].sum(0)),
    )
    z, said, rows = evaluated(model, x)
    torch.testing.assert_close(z, reference(model, x), rtol=0, atol=1e-6)
    assert said == [] and 4 in rows and min(rows) < 4


def test_edges_the_comparison_is_made_once_for_given_weights():
    model, x = Model(of(Named), plain), inputs()
    model.gradient = JFB()
    (first, _, rows), (second, _, again), (third, _, _) = (evaluated(model, x) for _ in range(3))
    assert rows == [6, 6, 3, 3, *again]
    assert torch.equal(first, second) and torch.equal(first, third)
    model.train().eval()
    assert evaluated(model, x)[2] == again


class DrawsAnew(nn.Module):
    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


@pytest.mark.parametrize("layer", [nn.Dropout(0.2), nn.Dropout2d(0.2), DrawsAnew()], ids=lambda layer: str(layer))
def test_edges_what_draws_at_every_evaluation_is_named_once(layer):
    model = Model(of(Named), lambda z, u: layer(plain(z, u)))
    model.gradient = UPG(k=1)
    model.solver = FixedPointIteration(max_steps=20)
    with pytest.warns(UserWarning) as record:
        model(inputs()), model(inputs())
    assert [str(warning.message) for warning in record if "draws" in str(warning.message)] == [
        "the cell of `Model` draws random numbers at every evaluation, so that it has no equilibrium. Use "
        "`deq_lightning.models.VariationalDropout` in place of `torch.nn.Dropout`: it draws once a solve."
    ]


@pytest.mark.parametrize("strategy", [UPG(), JFB(), Implicit(), Unrolled(unroll_steps=3)], ids=repr)
def test_edges_what_draws_once_a_solve_or_not_at_all_passes(strategy):
    class Variational(Model):
        def __init__(self):
            super().__init__(of(Named), plain)
            self.dropout = VariationalDropout(0.3)

        def cell(self, z, u):
            return self.dropout(super().cell(z, u))

    model, before = Variational(), torch.get_rng_state()
    model.gradient = strategy
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()(inputs()), answer(model, inputs())
    assert not torch.equal(torch.get_rng_state(), before)  # the mask


@pytest.mark.parametrize("solver", ["Anderson", Anderson, 3, UPG()], ids=repr)
def test_edges_a_solver_that_is_none_is_refused(solver):
    message = (
        f"`solver` must be a `Solver`, got {solver!r}. Pass an object such as `Anderson()`; for the command line to "
        "make one, annotate the argument: `solver: Solver | None = None`."
    )
    with pytest.raises(ValueError) as refusal:
        Model(of(Named), plain, solver)
    assert str(refusal.value) == message
    model = Model(of(Named), plain)
    model.solver = solver
    with pytest.raises(ValueError) as refusal:
        model(inputs())
    assert str(refusal.value) == message


def test_edges_a_gradient_that_is_none_is_refused():
    model = Model(of(Named), plain)
    model.gradient = UPG
    with pytest.raises(ValueError, match=r"^`gradient` must be a `GradientStrategy`, got <class .*UPG\(\)`;"):
        model(inputs())


@pytest.mark.parametrize("strategy", [UPG(), JFB(), Implicit()], ids=repr)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("solver", [FixedPointIteration, Anderson, Broyden])
def test_edges_a_start_at_the_answer_costs_one_evaluation(strategy, training, solver):
    model, x = Model(of(Named), plain, solver(max_steps=500, rtol=1e-8)), inputs().requires_grad_()
    model.gradient = strategy
    cold, (found,) = model.train(training)(x)
    for start in (found, found.solution, found.z.detach(), found.solution.z):
        warm, (again,) = model(x, start=start)
        assert again.solution.evaluations == 1 < found.solution.evaluations
        torch.testing.assert_close(warm, cold, rtol=0, atol=1e-6)
        expected = torch.autograd.grad(cold.sum(), x, retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(warm.sum(), x)[0], expected, rtol=0, atol=1e-5)


def test_edges_what_an_earlier_call_found_starts_without_its_graph():
    """A state that was given as a tensor keeps it: to carry gradients through time is one's own choice."""
    model, x = Model(of(Named), lambda z, u: plain(z, u) * model.scale), inputs()
    model.gradient = Unrolled(unroll_steps=2)
    _, (first,) = model(x)
    z = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    carried, given = model(x, start=first)[0], model(x, start=z)[0]
    assert torch.autograd.grad(carried.sum(), first.z, allow_unused=True) == (None,)
    assert torch.autograd.grad(given.sum(), z)[0].abs().sum() > 0
    torch.testing.assert_close(carried, model(x, start=first.z.detach())[0])
    carried.sum().backward(), first.z.sum().backward()  # two graphs, neither freed by the other


@pytest.mark.parametrize(
    ("start", "got"),
    [
        (torch.zeros(5, 4), "[5, 4]"),
        ((torch.zeros(6, 4),), "([6, 4],)"),
        (Solution((), None, None, None, 1), "()"),
    ],
    ids=str,
)
def test_edges_a_start_of_another_shape_is_refused(start, got):
    with pytest.raises(ValueError) as refusal:
        Model(of(Named), plain)(inputs(), start=start)
    assert str(refusal.value) == (
        "`start` must be a state of this model for this input, [6, 4], or a `Solution` or `Equilibrium` that holds "
        f"one, got {got}."
    )


def test_edges_a_start_is_brought_to_the_precision_of_the_model_and_out_of_inference_mode():
    model, x = Model(of(Named), lambda z, u: plain(z, u) * model.scale), inputs()
    model.gradient = Unrolled(unroll_steps=2)
    with torch.inference_mode():
        _, (found,) = model(x)
    model(x, start=found)[0].sum().backward()
    assert model(x, start=found.z.float())[0].dtype == torch.float64


def test_edges_stacked_layers_start_where_each_has_ended():
    from torch_geometric.data import Data

    torch.manual_seed(0)
    net = IGNNNodeClassifier(5, 2, [4, 3], perron=1.0).double().eval()
    graph = Data(x=torch.randn(4, 5).double(), edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))
    cold, found = net(graph)
    warm, again = net(graph, start=found)
    assert [one.solution.evaluations for one in again] == [1, 1] and found[0].solution.evaluations > 1
    torch.testing.assert_close(warm, cold, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"^`start` must have one entry for each of 2 layers, got 1.$"):
        net(graph, start=found[:1])


def test_edges_a_text_starts_where_it_ended():
    torch.manual_seed(0)
    sizes = dict(vocab_size=9, width=8, heads=2, inner_width=8, cutoffs=(), div_val=1)
    net = DEQTransformer(**sizes, solver=Anderson(max_steps=300)).double().eval()
    segment = Segment(torch.arange(6)[None])
    cold, (found,) = net(segment)
    warm, (again,) = net(segment, start=found)
    assert found.solution.status.tolist() == [Status.converged]
    assert again.solution.evaluations == 1 < found.solution.evaluations
    torch.testing.assert_close(warm.hidden, cold.hidden, rtol=0, atol=1e-2)
