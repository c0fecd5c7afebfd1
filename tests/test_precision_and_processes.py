"""Half precision, scaled losses and several processes: none of them changes what is learned."""

from itertools import product
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support import text_processes, two_processes
from support.fake_data import make_wikitext
from support.launch import in_two_processes
from support.marks import slow
from support.problems import random, relative_error, tanh
from support.two_processes import QUIET, Small, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from deq_lightning import JFB, NPG, UPG, Digits, ImageClassification, Implicit, Unrolled
from deq_lightning.solvers import GMRES, Anderson, Broyden, FixedPointIteration

STRATEGIES = {
    **{strategy.__name__: strategy for strategy in (NPG, UPG, JFB, Unrolled)},
    "UPG-checkpoint": lambda: UPG(checkpoint=True),
    **{
        f"Implicit-{adjoint.__name__}": lambda adjoint=adjoint: Implicit(adjoint_solver=adjoint())
        for adjoint in (FixedPointIteration, Anderson, Broyden, GMRES)
    },
}
SOLVERS = [FixedPointIteration, Anderson, Broyden, GMRES]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
every_solver = pytest.mark.parametrize("solver", SOLVERS)
every_pair = pytest.mark.parametrize(
    ("solver", "strategy"),
    [
        (solver, strategy) if solver is Anderson or strategy == "UPG" else slow(solver, strategy)
        for solver, strategy in product(SOLVERS, STRATEGIES)
    ],
)


# --- several processes


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict:
    """What two processes recorded, with gradients of every strategy, and of a language model."""
    folder: Path = tmp_path_factory.mktemp("processes")
    make_wikitext(folder, pytest.MonkeyPatch())
    in_two_processes("support.two_processes", folder, "2", "both.pt")
    return {**torch.load(folder / "both.pt"), "folder": folder}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", two_processes.STRATEGIES)
def test_two_processes_learn_and_log_what_one_does(strategy, both):
    gradients, metrics = train(two_processes.STRATEGIES[strategy]())
    shared_gradients, shared_metrics = both[strategy]
    assert gradients.shape[0] == 3 and (gradients.norm(dim=1) > 1e-2).all()
    for shared, alone in zip(shared_gradients, gradients, strict=True):
        assert relative_error(shared, alone) < 1e-6
    solved = {"solver_steps", "solver_residual"} if strategy != "Unrolled" else set()
    assert {f"{split}_{name}" for split in ("val", "test") for name in {"loss", "acc"} | solved} == metrics.keys()
    assert shared_metrics == pytest.approx(metrics, rel=1e-5)


@pytest.mark.slow
def test_two_processes_share_the_streams_of_a_text(both):
    """Weights, memory and perplexities are those of one process, in a resumed run as well, and one writes the ids."""
    assert (both["folder"] / "wikitext-2/written").read_text() == "once\n"
    alone = text_processes.train(1, both["folder"])
    assert len(alone["saved"]) == 2 and all(part.shape[:2] == (8, 5) for part in alone["saved"])
    for shared, tolerance in zip(both["text"], (1e-9, 1e-6), strict=True):  # Lightning resumes from rounded weights
        for name, part in alone["weights"].items():
            assert relative_error(shared["weights"][name], part) < tolerance
        for part, own in zip(shared["saved"], alone["saved"], strict=True):
            assert relative_error(part, own) < tolerance
        for name in ("val_loss", "val_ppl", "test_loss", "test_ppl"):
            assert shared["figures"][name] == pytest.approx(alone["figures"][name], rel=1e-5)


# --- bfloat16


@every_pair
def test_bfloat16_training_learns(solver, strategy):
    """Ten steps on 64 digits through Lightning's mixed precision, from the same start for all."""
    data = Digits()
    data.setup()
    x, y = data.train_set[:64]
    task = ImageClassification(Small(solver()), optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2))

    def loss():
        with torch.no_grad():
            return nn.functional.cross_entropy(task(x), y).item()

    before, start = nn.utils.parameters_to_vector(task.parameters()).detach(), loss()
    trainer = pl.Trainer(precision="bf16-mixed", max_steps=10, callbacks=[STRATEGIES[strategy]()], **QUIET)
    trainer.fit(task, DataLoader(TensorDataset(x, y), 64))
    moved = [(a != b).any() for a, b in zip(task.parameters(), Small(solver()).parameters(), strict=True)]
    assert all(moved) and nn.utils.parameters_to_vector(task.parameters()).dtype == before.dtype == torch.float32
    assert loss() < 0.8 * start


# --- scaled losses


@every_strategy
@every_solver
def test_the_scale_of_the_loss_does_not_change_the_direction(solver, strategy):
    problem = tanh(radius=0.9, dim=16)
    cell, z0 = problem.cell.float(), problem.z0.float()
    problem.u = problem.u.detach().float().requires_grad_()
    z, _ = STRATEGIES[strategy]().fixed_point(lambda z: cell(z, problem.u), z0, solver(rtol=1e-5))
    g = random(3, 16, seed=3).float()
    expected = torch.autograd.grad(z, problem.inputs, g, retain_graph=True)
    for scale in (1e-6, 65536.0, 1e9):
        actual = torch.autograd.grad(z, problem.inputs, scale * g, retain_graph=True)
        for one, other in zip(actual, expected, strict=True):
            assert relative_error(one / scale, other) < 1e-3


@every_strategy
def test_float16_overflow_is_never_hidden(strategy):
    """A gradient scaler raises its factor until something overflows, and lowers it only when it sees that."""
    dim = 16
    layer, u = nn.Linear(dim, dim, bias=False), 0.02 * random(3, dim).float()
    layer.weight.data.copy_(0.49 * torch.eye(dim) + 0.49 / dim)  # one stiff direction: the adjoint outgrows its start
    g, overflows = 1 + random(3, dim, seed=3).float(), 0
    with torch.autocast("cpu", dtype=torch.float16):
        z, _ = STRATEGIES[strategy]().fixed_point(
            lambda z: torch.tanh(layer(z) + u), torch.zeros(3, dim), Anderson(100, 1e-3)
        )
    (expected,) = torch.autograd.grad(z, layer.weight, g, retain_graph=True)
    for scale in 2.0 ** torch.arange(8, 18, 0.25):
        (actual,) = torch.autograd.grad(z, layer.weight, scale * g, retain_graph=True)
        if torch.isfinite(actual).all():
            assert torch.cosine_similarity(actual.flatten(), expected.flatten(), dim=0) > 0.99
        else:
            overflows += 1
    assert overflows
