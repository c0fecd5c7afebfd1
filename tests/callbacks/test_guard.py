"""A run that has diverged is stopped, and leaves a checkpoint from before."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.runs import digits_task as task
from support.runs import trainer
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


def run(folder: Path, module: pl.LightningModule, guard: DivergenceGuard, **options: object) -> None:
    options = {"max_steps": 60, "limit_val_batches": 0, "max_epochs": 10, **options}
    trainer(folder, UPG(), guard, **options).fit(module, Digits(batch_size=32))


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


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"check_every": 0}, {"save_every": 0}, {"diverged_share": 1.0}])
def test_bad_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        DivergenceGuard(**arguments)
