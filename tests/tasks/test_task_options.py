"""What a task does beside its loss: penalty, compiled cell, memory format."""

import copy
import itertools
import pickle
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.marks import slow
from test_tasks import SMALL, trainer

from deq_lightning import (
    GMRES,
    JFB,
    MDEQ,
    NPG,
    UPG,
    Anderson,
    Broyden,
    Digits,
    FixedPointIteration,
    ImageClassification,
    Implicit,
    ImplicitModel,
    JacobianPenalty,
    Unrolled,
    jacobian_penalty,
    spectral_radius,
)

STRATEGIES = [UPG(k=2), UPG(k=2, checkpoint=True), NPG(k=3), JFB(), Implicit(), Unrolled(unroll_steps=2)]


class Tanh(ImplicitModel):
    """Smooth, so that a step of its solver turns no rounding into anything large."""

    def __init__(self) -> None:
        super().__init__(Anderson(max_steps=30, rtol=1e-6))
        torch.manual_seed(0)
        self.lift, self.mix, self.out = torch.nn.Linear(64, 12), torch.nn.Linear(12, 12), torch.nn.Linear(12, 10)

    def inject(self, x):
        return self.lift(x.flatten(1))

    def cell(self, z, u):
        return torch.tanh(self.mix(z) + u)

    def readout(self, z):
        return self.out(z)


def net(**options: object) -> MDEQ:
    torch.manual_seed(0)
    return MDEQ(**SMALL, **options, solver=FixedPointIteration(max_steps=4, rtol=0))


def gradients(model: ImplicitModel, x: torch.Tensor) -> torch.Tensor:
    loss = model(x)[0].square().sum()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_compiled_cell_gives_the_same_gradients(strategy: pl.Callback) -> None:
    """With torch's own kernels behind the compiled graph; the adjoint solve goes through it many times."""
    model, x = Tanh(), torch.randn(5, 1, 8, 8)
    model.gradient = strategy
    expected = gradients(model, x)
    model.compile(backend="aot_eager")
    torch.testing.assert_close(gradients(model, x), expected, rtol=1e-5, atol=1e-6)
    assert model.compiled_cell is not None


@pytest.mark.slow
def test_clones_share_the_compiled_cell() -> None:
    """Each forward pass works on a new clone with its own masks; that must not compile again, nor freeze the masks."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph

    model = net(dropout=0.3)
    model.compile(backend=backend)
    x = torch.randn(3, 1, 8, 8)
    outputs, counts = [], []
    for _ in range(4):
        outputs.append(model(x)[0])
        outputs[-1].sum().backward()
        counts.append(len(graphs))
    assert 0 < counts[0] == counts[-1]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(outputs))


@pytest.mark.slow
def test_weights_move_under_a_compiled_cell(folder: Path) -> None:
    ends = []
    for compile in (False, True):
        pl.seed_everything(0)
        task = ImageClassification(Tanh())
        if compile:
            task.net.compile(backend="aot_eager")
        trainer(folder, callbacks=[UPG(k=2)]).fit(task, Digits())
        ends.append(torch.nn.utils.parameters_to_vector(task.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


def test_copies_of_a_compiled_model_are_not_compiled() -> None:
    model, x = Tanh().eval(), torch.randn(2, 1, 8, 8)
    model.compile(backend="aot_eager")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.compiled_cell is None
        torch.testing.assert_close(twin(x)[0], model(x)[0])


@pytest.mark.parametrize(
    "solver", [FixedPointIteration(6, rtol=0), slow(Anderson(6, rtol=0, history=3)), slow(Broyden(6, rtol=0))]
)
def test_a_solve_of_a_fixed_budget_is_one_graph(solver: FixedPointIteration | Anderson | Broyden) -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) / 8

    def solve(z0: torch.Tensor) -> tuple[torch.Tensor, ...]:
        solution = solver.solve(lambda z: torch.tanh(z @ weight + 1), z0)
        return solution.z, solution.residual, solution.steps, solution.status

    compiled = torch.compile(solve, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(torch.zeros(4, 8)), solve(torch.zeros(4, 8)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_compile_and_penalty_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="`penalty` differentiates the cell twice, which `compile` cannot do"):
        ImageClassification(net(), compile=True, penalty=JacobianPenalty())


@pytest.mark.parametrize(("given", "expected"), [(None, True), (True, True), (False, False)])
def test_on_a_cpu_channels_come_last_unless_told_otherwise(given: bool | None, expected: bool, folder: Path) -> None:
    task = ImageClassification(net(), channels_last=given)
    seen = []
    task.net.stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    trainer(folder, max_steps=1).fit(task, Digits())
    trainer(folder).test(task, Digits(), verbose=False)
    assert all(u.is_contiguous(memory_format=torch.channels_last) is expected for u in seen)
    assert len(task.net._forward_pre_hooks) == bool(given)  # what nobody asked for is put back
    assert given or all(parameter.is_contiguous() for parameter in task.net.parameters())


def test_channels_last_is_another_order_in_memory_of_the_same_numbers(folder: Path) -> None:
    x = torch.randn(3, 1, 8, 8)
    plain = ImageClassification(net()).double()
    last = ImageClassification(net(), channels_last=True).double()
    seen = []
    last.net.stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(last.net(x.double())[0], plain.net(x.double())[0])
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()
    trainer(folder, callbacks=[Implicit()]).fit(last.float(), Digits())


def test_the_penalty_is_part_of_the_loss_and_is_logged(folder: Path) -> None:
    penalty = JacobianPenalty(weight=3.0, milestones={2: 0.0})
    task = ImageClassification(Tanh(), penalty=penalty, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    losses, values = [], []

    class Listener(pl.Callback):
        def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
            losses.append(loss.item() - trainer.callback_metrics["train_loss"].item())
            values.append(trainer.callback_metrics["jacobian_penalty"].item())

    trainer(folder, callbacks=[UPG(), Listener()]).fit(task, Digits())
    assert losses == pytest.approx(values, abs=1e-6)
    assert values[0] > 0 and values[1] > 0 and values[2] == 0
    x = next(iter(_train_batches()))[0]
    ((f, z, _),) = task.net(x)[1]
    expected = 3 * jacobian_penalty(f, z, probes=300).item()
    assert sum(values[:2]) / 2 == pytest.approx(expected, rel=0.3)


def test_the_penalty_makes_the_cell_more_contractive(folder: Path) -> None:
    radii = []
    for penalty in (None, JacobianPenalty(weight=10.0)):
        pl.seed_everything(0)
        task = ImageClassification(Tanh(), penalty=penalty, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
        with torch.no_grad():
            task.net.mix.weight.mul_(2)
        trainer(folder, callbacks=[UPG()], max_steps=30).fit(task, Digits())
        x = next(iter(_train_batches()))[0]
        ((f, z, _),) = task.net(x)[1]
        radii.append(spectral_radius(f, z.detach()).mean().item())
    assert radii[1] < 0.7 * radii[0]


def _train_batches() -> object:
    data = Digits()
    data.setup("fit")
    return data.train_dataloader()


@pytest.mark.parametrize("adjoint", [GMRES(5), Anderson(5)])
def test_the_penalty_goes_with_every_strategy(folder: Path, adjoint: GMRES | Anderson) -> None:
    for strategy in (UPG(), NPG(), JFB(), Implicit(adjoint_solver=adjoint), Unrolled(unroll_steps=2)):
        task = ImageClassification(net(dropout=0.2), penalty=JacobianPenalty())
        fit = trainer(folder, callbacks=[strategy], max_steps=1)
        fit.fit(task, Digits())
        assert fit.callback_metrics["jacobian_penalty"] > 0
