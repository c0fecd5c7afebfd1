"""Tasks with a plain trainer, and models with none."""

import copy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from deq_lightning import (
    JFB,
    MDEQ,
    NPG,
    UPG,
    CosineToEnd,
    Digits,
    FixedPointIteration,
    ImageClassification,
    JacobianPenalty,
    Network,
    PolynomialToEnd,
    StepsToEnd,
    Unrolled,
    WarmupCosineToEnd,
)
from deq_lightning.configured import CombinationError

SMALL = dict(in_channels=1, channels=(4,), groups=2, expansion=2, head_channels=(2,), final_channels=8)


def net() -> MDEQ:
    torch.manual_seed(0)
    return MDEQ(**SMALL, solver=FixedPointIteration(max_steps=3))


def trainer(folder: Path, **options: object) -> pl.Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, accelerator="cpu")
    return pl.Trainer(**{"default_root_dir": folder, "max_steps": 3, "limit_val_batches": 1, **quiet, **options})


def test_the_trainers_strategy_is_used(folder: Path) -> None:
    task = ImageClassification(net())
    strategy = UPG(k=2)
    trainer(folder, callbacks=[strategy]).fit(task, Digits())
    assert task.net.gradient is strategy
    assert strategy.step == 3


def test_the_models_own_strategy_is_used_and_its_schedule_moves(folder: Path) -> None:
    task = ImageClassification(net())
    task.net.gradient = JFB(pretrain_steps=2)
    fit = trainer(folder)
    fit.fit(task, Digits())
    assert task.net.gradient in fit.callbacks
    assert task.net.gradient.step == 3


def test_the_schedule_goes_through_a_checkpoint(folder: Path) -> None:
    first = ImageClassification(net())
    fit = trainer(folder, callbacks=[NPG(pretrain_steps=10)])
    fit.fit(first, Digits())
    fit.save_checkpoint("steps.ckpt")
    second = ImageClassification(net())
    other = UPG(pretrain_steps=10)
    trainer(folder, callbacks=[other], max_steps=4).fit(second, Digits(), ckpt_path="steps.ckpt")
    assert other.step == 4


def test_two_strategies_are_refused(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        trainer(folder, callbacks=[UPG(), JFB()])


def test_python_runs_save_plain_data_and_load_with_their_net(folder: Path) -> None:
    task = ImageClassification(net(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    fit = trainer(folder)
    fit.fit(task, Digits())
    fit.save_checkpoint("plain.ckpt")
    torch.load("plain.ckpt", weights_only=True)
    loaded = ImageClassification.load_from_checkpoint("plain.ckpt", net=net())
    for a, b in zip(task.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_cosine_to_end_spans_the_run(folder: Path) -> None:
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    task = ImageClassification(net(), lr_scheduler=lambda optimizer: CosineToEnd(optimizer, eta_min=1e-4))
    fit = trainer(folder, callbacks=[Watch()], max_steps=6)
    fit.fit(task, Digits())
    expected = 1e-4 + (1e-3 - 1e-4) * (1 + torch.cos(torch.arange(6) / 6 * torch.pi)) / 2
    assert rates == pytest.approx(expected.tolist())
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_a_schedule_to_the_end_needs_an_end(folder: Path) -> None:
    task = ImageClassification(net(), lr_scheduler=CosineToEnd)
    endless = trainer(folder, max_steps=-1, max_epochs=-1, max_time={"seconds": 3})
    with pytest.raises(CombinationError, match=r"`CosineToEnd` needs a run .* Set `trainer.max_epochs=N` or"):
        endless.fit(task, Digits())


def test_what_is_logged(folder: Path) -> None:
    fit = trainer(folder, max_epochs=1, max_steps=-1, limit_train_batches=2)
    fit.fit(ImageClassification(net()), Digits())
    names = {"train_loss", "solver_steps", "solver_residual", "val_loss", "val_acc", "val_solver_steps"}
    assert names <= fit.logged_metrics.keys()
    assert fit.logged_metrics["solver_steps"] == 3
    assert {"train_loss", "solver_steps", "solver_residual"} <= fit.progress_bar_metrics.keys()
    fit = trainer(folder, callbacks=[Unrolled(unroll_steps=2)])
    fit.fit(ImageClassification(net()), Digits())
    assert "solver_steps" not in fit.logged_metrics  # nothing is solved there, and nothing is made up


def test_accuracy_is_over_the_whole_split(folder: Path) -> None:
    task, data = ImageClassification(net()), Digits(eval_batch_size=100)
    (metrics,) = trainer(folder).test(task, data, verbose=False)
    x, y = (torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*data.test_set, strict=True))
    with torch.no_grad():
        logits = task.eval()(x)
    assert metrics["test_acc"] == pytest.approx((logits.argmax(dim=1) == y).float().mean().item())
    assert metrics["test_loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)


def test_plain_pytorch_trains() -> None:
    model = net()
    model.gradient = JFB()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x)[0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_fitted_models_copy_does_not_copy_its_task(folder: Path) -> None:
    task = ImageClassification(net())
    trainer(folder, callbacks=[UPG(k=2)]).fit(task, Digits())
    twin = copy.deepcopy(task.net)
    assert vars(twin.gradient).keys() == {"pretrain_steps", "unroll_steps", "step", "k", "damping", "checkpoint"}
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(task.net.eval()(x)[0], twin.eval()(x)[0])


def test_squared_error_is_the_mean_square_of_the_distance_to_the_one_hot_label() -> None:
    task = ImageClassification(net=MDEQ(**SMALL), criterion="squared_error")
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([1, 0, 4])
    logits = task(x)
    expected = (logits - torch.eye(logits.shape[1])[y]).square().mean()
    torch.testing.assert_close(task.loss((x, y))[0], expected)


@pytest.mark.parametrize("as_published", [False, True])
def test_evaluation_in_train_mode_is_an_option_that_labels_itself(as_published: bool, folder: Path) -> None:
    task = ImageClassification(net=MDEQ(**SMALL), evaluate_in_train_mode=as_published)
    seen = []
    task.net.head.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    trainer(folder, max_epochs=1, limit_train_batches=1, limit_val_batches=1).fit(task, Digits())
    assert seen[-1] is as_published  # validation comes last
    assert task.net.training
    assert task.departures == (["dropout and batch statistics are as in training"] if as_published else [])


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`criterion` must be one of cross_entropy, squared_error; got 'mse'"):
        ImageClassification(net=MDEQ(**SMALL), criterion="mse")


class Explicit(Network):
    """A network without an equilibrium, whose weight must stay at most 1."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.nn.Linear(64, 10)
        self.projections = 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list]:
        return self.out(x.flatten(1)), []

    def project(self, equilibria: list) -> None:
        assert not torch.is_grad_enabled() and equilibria == []
        self.projections += 1
        self.out.weight.clamp_(-0.05, 0.05)


def test_a_network_without_an_equilibrium_trains_and_is_projected_after_every_optimizer_step(folder: Path) -> None:
    task = ImageClassification(net=Explicit(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    trainer(folder, max_steps=3, accumulate_grad_batches=2).fit(task, Digits())
    assert task.net.projections == 3
    trainer(folder).validate(task, Digits(), verbose=False)
    assert task.net.projections == 3
    assert task.net.out.weight.abs().max() == 0.05
    assert task.gradient is None


def test_a_penalty_without_an_equilibrium_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`penalty` is on an equilibrium, and `Explicit` has none. Leave it out."):
        ImageClassification(net=Explicit(), penalty=JacobianPenalty())


def test_the_projection_sees_the_detached_equilibria_of_the_step(folder: Path) -> None:
    seen = []
    task = ImageClassification(net=MDEQ(**SMALL))
    task.net.project = seen.extend
    trainer(folder, max_steps=2).fit(task, Digits())
    assert len(seen) == 2
    assert not any(part.requires_grad for equilibrium in seen for part in equilibrium.z)


@pytest.mark.parametrize(
    "schedule",
    [CosineToEnd, PolynomialToEnd, lambda optimizer: StepsToEnd(optimizer, [0.4, 0.7]), WarmupCosineToEnd],
    ids=["cosine", "polynomial", "steps", "warmup"],
)
def test_a_run_that_becomes_longer_goes_on_as_a_longer_one(schedule) -> None:
    """PyTorch's recursions would stay at the rate of zero with which the shorter run has ended."""

    def rates(length: int, steps: int, saved: dict | None = None) -> tuple[list[float], dict]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        scheduler = schedule(optimizer)
        scheduler.end_at(length)
        if saved is not None:
            scheduler.load_state_dict(saved)
        seen = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            seen.append(optimizer.param_groups[0]["lr"])
        return seen, scheduler.state_dict()

    _, saved = rates(10, 10)
    whole, _ = rates(20, 20)
    assert rates(20, 10, saved)[0] == pytest.approx(whole[10:])
    assert whole[10] > 0
