"""A run that has diverged is stopped, and leaves a checkpoint from before."""

import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from support.marks import slow
from support.runs import TINY, trainer
from support.runs import digits_task as task
from torch import Tensor

from deq_lightning import UPG, Digits, DivergenceGuard, FixedPointIteration, ImageClassification
from deq_lightning.callbacks import DivergenceError
from deq_lightning.cli import main


class Failing(ImageClassification):
    """Its loss is NaN in some of its batches."""

    def __init__(self, bad: range | set[int]) -> None:
        super().__init__(task().net)
        self.bad = bad
        self.batches = 0

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple:
        loss, equilibria = super().loss(batch)
        bad = self.training and self.batches in self.bad
        self.batches += self.training
        return (loss * torch.nan if bad else loss), equilibria


def run(
    folder: Path, module: pl.LightningModule, guard: DivergenceGuard, *others: pl.Callback, **options: object
) -> None:
    options = {"max_steps": 60, "limit_val_batches": 0, "max_epochs": 10, **options}
    trainer(folder, UPG(), guard, *others, **options).fit(module, Digits(batch_size=32))


def test_it_stops_after_the_run_and_leaves_a_healthy_checkpoint(folder: Path) -> None:
    module, guard = Failing(range(23, 1000)), DivergenceGuard(patience=8, check_every=5, save_every=10)
    with pytest.raises(
        DivergenceError, match=r"the loss was not finite in \d+ steps in a row. Lower the learning rate"
    ):
        run(folder, module, guard)
    assert 23 + 8 <= module.batches <= 23 + 8 + 5
    assert guard.saved == (folder / "healthy.ckpt", 20)
    saved = torch.load(folder / "healthy.ckpt", weights_only=True)
    assert saved["global_step"] == 20
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


@pytest.mark.slow
def test_the_healthy_checkpoint_continues(folder: Path) -> None:
    with pytest.raises(DivergenceError):
        run(folder, Failing(range(23, 1000)), DivergenceGuard(patience=2, check_every=1, save_every=10))
    again = task()
    fit = trainer(folder, UPG(), max_steps=25, limit_val_batches=0)
    fit.fit(again, Digits(batch_size=32), ckpt_path=folder / "healthy.ckpt")
    assert fit.global_step == 25 and torch.isfinite(fit.callback_metrics["train_loss"])


def test_single_bad_steps_are_let_pass(folder: Path) -> None:
    """As with mixed precision, whose scaler skips the update."""

    class Robust(Failing):
        def on_before_optimizer_step(self, optimizer: object) -> None:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0)

    module = Robust({1, 2, 3, 5, 6, 7, 9, 10, 11})
    run(folder, module, DivergenceGuard(patience=4, check_every=1), max_steps=15)
    assert module.batches == 15


def test_it_stops_where_the_solver_diverges(folder: Path) -> None:
    module = task()
    module.net.solver = FixedPointIteration(max_steps=200)
    cell = module.net.cell
    module.net.cell = lambda z, u: tuple(10 * part + 1e30 * one for part, one in zip(z, cell(z, u), strict=True))
    with pytest.raises(DivergenceError, match=r"the solver diverged on most samples in 3 steps in a row\. Use a"):
        run(folder, module, DivergenceGuard(patience=3, check_every=1))


def test_weights_that_were_bad_from_the_start_are_not_called_healthy(folder: Path) -> None:
    with pytest.raises(DivergenceError, match="No checkpoint from before was kept"):
        run(folder, Failing(range(1000)), DivergenceGuard(patience=3, check_every=1))
    assert not (folder / "healthy.ckpt").exists()


def test_without_checkpointing_nothing_is_written(folder: Path) -> None:
    run(folder, task(), DivergenceGuard(), max_steps=2, enable_checkpointing=False)
    assert not list(folder.rglob("*.ckpt"))


def test_on_the_command_line_it_is_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fit", "--config", "digits_upg", "--model.optimizer.lr", "1e30", "--guard.patience", "3"]
    with pytest.raises(SystemExit) as status:
        main([*command, "--guard.check_every", "1", "--trainer.enable_progress_bar", "false"])
    assert status.value.code == 1
    error = capsys.readouterr().err
    assert "error: stopped at step" in error and "Traceback" not in error
    path = folder / "checkpoints" / "digits_upg" / "healthy.ckpt"
    assert str(path) in error.replace("checkpoints/digits_upg", str(path.parent)) and path.is_file()


# --- what is not finite before the guard's patience ends


def ruin(module: pl.LightningModule, value: float, step: int) -> pl.Callback:
    """Make a weight infinite or NaN after that step."""

    class Ruin(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
            if trainer.global_step == step:
                next(module.parameters()).data.view(-1)[0] = value

    return Ruin()


LAST_WORDS = (
    "Lower the learning rate, clip gradients (`trainer.gradient_clip_val`), add a Jacobian penalty, or look for such "
    "values in the data."
)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("when", ["before a validation", "at the end of an epoch"])
def test_durable_weights_that_are_not_finite_stop_the_run(value: float, when: str, folder: Path) -> None:
    module = task()
    options = {"val_check_interval": 2, "limit_val_batches": 1} if when == "before a validation" else {}
    options = {"max_steps": 4, "limit_val_batches": 0, "limit_train_batches": 4, **options}
    with pytest.raises(DivergenceError) as error:
        trainer(
            folder, UPG(), ruin(module, value, 2 if options["limit_val_batches"] else 4), DivergenceGuard(), **options
        ).fit(module, Digits(batch_size=32))
    name, step = next(iter(module.named_parameters()))[0], 2 if options["limit_val_batches"] else 4
    seen = f"stopped at step {step}: the weights or the optimizer's state ({name}) are not finite. {LAST_WORDS}"
    assert str(error.value) == f"{seen} From before (step 0): {folder / 'healthy.ckpt'}"
    assert [path.name for path in folder.rglob("*.ckpt")] == ["healthy.ckpt"]


def test_durable_a_last_loss_that_is_not_finite_stops_the_run(folder: Path) -> None:
    class Robust(Failing):
        def on_before_optimizer_step(self, optimizer: object) -> None:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0)

    with pytest.raises(DivergenceError, match=r"stopped at step 5: the loss is not finite since step 4\. Lower"):
        run(folder, Robust({3, 4}), DivergenceGuard(), max_steps=5)


def test_durable_a_state_of_the_optimizer_that_is_not_finite_stops_the_run(folder: Path) -> None:
    class Overflow(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
            next(iter(trainer.optimizers[0].state.values()))["exp_avg_sq"].fill_(torch.inf)

    fit = trainer(folder, UPG(), Overflow(), DivergenceGuard(), max_steps=1, limit_val_batches=0)
    with pytest.raises(
        DivergenceError, match=r"step 1: the weights or the optimizer's state \(optimizer\) are not fin"
    ):
        fit.fit(task(), Digits(batch_size=32))


@pytest.mark.parametrize("weights_only", [False, True])
def test_durable_no_checkpoint_is_written_from_what_is_not_finite(weights_only: bool, folder: Path) -> None:
    module = task()
    every = ModelCheckpoint(
        folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_weights_only=weights_only, save_on_exception=True
    )
    with pytest.raises(DivergenceError, match=r"not finite.* From before: .*step=2.ckpt"):
        run(folder, module, DivergenceGuard(save_every=100), ruin(module, torch.nan, 3), every, max_steps=9)
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["healthy.ckpt", "step=1.ckpt", "step=2.ckpt"]


def test_buffers_that_are_infinite_by_design_are_let_pass(folder: Path) -> None:
    module = task()
    module.register_buffer("mask", torch.full((2, 2), -torch.inf))
    run(folder, module, DivergenceGuard(), max_steps=2)
    assert (folder / "healthy.ckpt").is_file()


def test_durable_a_resumed_run_names_the_checkpoint_that_it_began_with(folder: Path) -> None:
    run(folder, task(), DivergenceGuard(save_every=3), max_steps=4)
    begun = (folder / "healthy.ckpt").rename(folder / "begun.ckpt")
    fit = trainer(folder, UPG(), DivergenceGuard(save_every=50), max_steps=9, limit_val_batches=0)
    module = Failing(range(1000))
    with pytest.raises(DivergenceError, match=f"the loss is not finite since step 4.* From before: {begun}"):
        fit.fit(module, Digits(batch_size=32), ckpt_path=begun)


@pytest.mark.parametrize("cause", ["rate", slow("features")])
def test_durable_on_the_command_line_no_run_ends_well_with_nan(
    cause: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if cause == "features":
        setup = Digits.setup

        def with_a_nan(self: Digits, stage: str | None = None) -> None:
            setup(self, stage)
            self.train_set.tensors[0][3, 0, 0, 0] = torch.nan

        monkeypatch.setattr(Digits, "setup", with_a_nan)
    rate = ["--model.optimizer.lr", "1e30" if cause == "rate" else "0.001"]
    with pytest.raises(SystemExit) as status:
        main(["fit", *TINY, *rate, "--trainer.max_epochs", "2"])
    assert status.value.code == 1
    error = capsys.readouterr().err
    seen = r"error: stopped at step \d+: the weights or .* are not finite and the loss is not finite since step (\d+)"
    found = re.search(seen, error)
    assert found is not None and (cause != "rate" or found[1] == "2")
    assert [path.name for path in folder.rglob("*.ckpt")] == ["healthy.ckpt"]
    saved = torch.load(folder / "checkpoints/digits_upg/healthy.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"check_every": 0}, {"save_every": 0}, {"diverged_share": 1.0}])
def test_bad_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        DivergenceGuard(**arguments)
