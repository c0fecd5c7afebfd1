"""The tuner picks the quickest alpha at its moments, and touches nothing else."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from support.runs import digits_task as mdeq_task
from support.runs import trainer, weights

from deq_lightning import (
    MON,
    UPG,
    Digits,
    DivergenceGuard,
    FixedPointIteration,
    ImageClassification,
    Implicit,
    MONConv,
    SplittingTuner,
    Status,
)
from deq_lightning.callbacks.splitting import steps_with
from deq_lightning.models.monotone.splitting import MonotoneModel


def task(splitting: str = "peaceman_rachford", alpha: float = 1.0, **options: object) -> ImageClassification:
    torch.manual_seed(0)
    options = {"solver": FixedPointIteration(max_steps=200), **options}
    return ImageClassification(MON(in_features=64, width=16, splitting=splitting, alpha=alpha, **options))


def fit(folder: Path, module: pl.LightningModule, *callbacks: pl.Callback, **options: object) -> pl.Trainer:
    options = {"max_steps": 8, "limit_val_batches": 0, "enable_checkpointing": False, **options}
    run = trainer(folder, *callbacks, **options)
    run.fit(module, Digits(batch_size=32), ckpt_path=options.pop("ckpt_path", None))
    return run


class Alphas(pl.Callback):
    """Notes the alpha that each training batch was solved with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self.seen.append(pl_module.net.alpha.item())


@pytest.mark.parametrize("splitting", ["peaceman_rachford", "forward_backward"])
def test_it_finds_the_fewest_steps_among_the_halvings(splitting: str) -> None:
    net, x = task(splitting, alpha=0.001).net.eval(), torch.randn(8, 64)
    net.monotone.a.weight.data *= 3
    with torch.no_grad():
        u = net.inject(x)
        best = SplittingTuner().best(net, u)
        steps = {2.0**-i: steps_with(2.0**-i, net, u) for i in range(8)}
    assert steps[best] == min(steps.values()) < torch.inf and steps[best] < steps_with(0.001, net, u)
    assert (steps[1.0] == torch.inf) == (splitting == "forward_backward")  # which it must get past
    assert 0.001 < best < 1 and net.alpha == pytest.approx(0.001)


def test_the_moments_are_those_published(folder: Path) -> None:
    """Digits in batches of 32 are 45 an epoch: batch 30 of the first, and batch 22 of each."""
    moments = []

    class Spy(SplittingTuner):
        def best(self, model: MonotoneModel, u: torch.Tensor) -> float:
            moments.append((self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_idx, len(u)))
            return 0.5

    spy, alphas = Spy(), Alphas()
    spy.trainer = trainer(folder, UPG(), spy, alphas, max_steps=-1, max_epochs=2, limit_val_batches=0)
    spy.trainer.fit(task(), Digits(batch_size=32))
    half = spy.trainer.num_training_batches // 2
    assert moments == [(0, half, 32), (0, 30, 32), (1, half, 32)]
    assert alphas.seen == [1.0] * (half + 1) + [0.5] * (len(alphas.seen) - half - 1)


def test_a_run_that_is_tuned_is_the_same_run(folder: Path) -> None:
    """Weights and the random state, bit for bit, where the alpha that is picked is the one that was there."""
    ends, trials = [], []

    class Spy(SplittingTuner):
        def best(self, model: MonotoneModel, u: torch.Tensor) -> float:
            trials.append(super().best(model, u))
            return trials[-1]

    for callbacks in ([], [Spy(first_batch=1, max_alpha=0.5, min_alpha=0.5)]):
        one = task(alpha=0.5)
        pl.seed_everything(1)
        fit(folder, one, Implicit(), *callbacks, limit_train_batches=6)
        ends.append([*weights(one), torch.get_rng_state()])
        assert one.net.training and not one.net._forward_hooks
    assert trials == [0.5, 0.5]  # batches 1 and 3
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_two_epochs_equal_one_and_one(folder: Path) -> None:
    ends = []
    for parts in ([2], [1, 2]):
        path = None
        for epochs in parts:
            one = task(alpha=0.03)
            run = trainer(folder, Implicit(), SplittingTuner(first_batch=1), max_steps=-1, max_epochs=epochs)
            run.fit(one, Digits(batch_size=128), ckpt_path=path)
            path = folder / "last.ckpt"
            run.save_checkpoint(path)
        ends.append(weights(one))
        assert one.net.alpha > 0.03
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert torch.load(path, weights_only=True)["state_dict"]["net.alpha"] == one.net.alpha


def test_where_nothing_converges_alpha_stays(folder: Path) -> None:
    one = task(alpha=0.3, solver=FixedPointIteration(max_steps=2))
    fit(folder, one, UPG(), SplittingTuner(first_batch=1), max_steps=2)
    assert one.net.alpha == pytest.approx(0.3)


def test_where_nothing_is_solved_alpha_stays(folder: Path) -> None:
    one = task(alpha=0.01)
    fit(folder, one, UPG(pretrain_steps=100), SplittingTuner(first_batch=1), max_steps=3)
    assert one.net.alpha == pytest.approx(0.01)


def test_the_trials_are_not_reported(folder: Path) -> None:
    seen = []

    class Guard(DivergenceGuard):
        def on_train_batch_end(self, trainer: object, pl_module: ImageClassification, *args: object) -> None:
            seen.append(len(pl_module.solutions))

    for callbacks in ([Guard(), SplittingTuner(0)], [SplittingTuner(0), Guard()]):
        fit(folder, task("forward_backward", alpha=0.1), UPG(), *callbacks, max_steps=2)
    assert seen == [1] * 4


def test_other_networks_are_left_alone(folder: Path) -> None:
    ends = []
    for callbacks in ([], [SplittingTuner(first_batch=0)]):
        one = mdeq_task()
        pl.seed_everything(0)
        fit(folder, one, UPG(), *callbacks, max_steps=2)
        ends.append([*weights(one), torch.get_rng_state()])
        assert not one.net._forward_hooks
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_first_process_decides(folder: Path) -> None:
    one, tuner = task(), SplittingTuner()
    sent = []
    run = trainer(folder, UPG(), tuner)
    strategy = SimpleNamespace(broadcast=lambda alpha: sent.append(alpha) or 0.125)
    here = SimpleNamespace(
        current_epoch=0, num_training_batches=100, strategy=strategy, precision_plugin=run.precision_plugin
    )
    tuner.on_train_batch_start(here, one, None, 30)
    one(torch.randn(4, 64))
    tuner.on_train_batch_end(here, one, None, None, 30)
    assert len(sent) == 1 and sent[0] != 0.125
    assert one.net.alpha == 0.125


def test_a_tuned_convolution_finds_the_same_equilibrium() -> None:
    torch.manual_seed(0)
    net = MONConv(image_size=8, channels=4, alpha=0.02, solver=FixedPointIteration(max_steps=2000, rtol=1e-6))
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        _, ((_, before, slow),) = net(x)
        net.alpha.fill_(SplittingTuner().best(net, net.inject(x)))
        _, ((_, after, quick),) = net(x)
    assert (quick.status == Status.converged).all() and quick.steps.max() < slow.steps.min() / 4
    torch.testing.assert_close(net.prox(after), net.prox(before), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arguments", [{"first_batch": -1}, {"min_alpha": 0.0}, {"min_alpha": 2.0}])
def test_bad_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        SplittingTuner(**arguments)
