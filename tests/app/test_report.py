"""What a run prints: header, progress, end."""

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from support.fake_data import make_wikitext
from support.runs import TINY, trainer

from deq_lightning import MDEQ, Anderson, ImageClassification, JacobianPenalty, NeuralODE
from deq_lightning.app.ending import in_words
from deq_lightning.app.progress import Bar, Clock, EpochLines
from deq_lightning.cli import main

SHORT = [*TINY, "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "2"]
LOUD = SHORT[:2] + SHORT[6:]  # without the flags that keep Lightning quiet
BAR = ["--trainer.enable_progress_bar", "true"]
NOISE = ("Tip", "PU available", "Restor", "Loaded", "FLOPs", "Flops", "stopped:", "Seed set", "it/s")


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> str:
    """Return all that a run prints, and all that is logged in it."""
    capsys.readouterr()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        main(arguments)
    captured = capsys.readouterr()
    return captured.out + captured.err + caplog.text


# --- the whole ---


@pytest.mark.slow
def test_a_fit_is_told_in_few_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    text = printed(["fit", *LOUD, "--trainer.max_epochs", "15", "--trainer.log_every_n_steps", "1"], capsys, caplog)
    lines = text.strip().splitlines()
    assert len(lines) <= 25
    assert not [line for line in lines for noise in NOISE if noise in line]
    assert lines[0] == "device: cpu, precision 32-true, seed 0"
    assert re.fullmatch(r"net: MDEQ, [\d,]+ parameters; samples: 1,167 train, 270 val, 360 test", lines[1])
    assert lines[2].startswith("gradient: UPG(") and "; solver: Broyden(max_steps=5" in lines[2]
    assert lines[3] == "run: checkpoints/digits_upg"
    assert lines[-2] == "curves: tensorboard --logdir checkpoints/digits_upg"


@pytest.mark.slow
def test_continuing_and_testing_are_quiet(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    main(["fit", *SHORT, "--trainer.max_epochs", "1"])
    last = ["--ckpt_path", "checkpoints/digits_upg/last.ckpt"]
    for command in (["fit", *last, "--trainer.max_epochs", "2"], ["test", *last], ["validate", *last]):
        text = printed(command, capsys, caplog)
        assert not [noise for noise in NOISE if noise in text]
        split = "val" if command[0] == "validate" else "test"
        assert re.search(rf"^{split} accuracy 0\.\d+; equilibrium found for 0 % of the samples, 5 st", text, re.M)


@pytest.mark.slow
def test_the_table_of_the_model_is_printed_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    summary = ["--trainer.enable_model_summary", "true"]
    assert "Trainable params" in printed(["fit", *SHORT, *summary, "--trainer.max_epochs", "1"], capsys, caplog)


def test_warnings_and_reasons_to_stop_stay(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.warns(UserWarning, match="number of training batches .4. is smaller than the logging interval"),
        pytest.raises(SystemExit, match="1"),
    ):
        printed(["fit", *SHORT, "--trainer.max_time", "00:00:00:00"], capsys, caplog)
    assert "Time limit reached" in caplog.text


@pytest.mark.slow
def test_lightning_is_as_loud_as_ever_outside(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    main(["fit", *SHORT, "--trainer.fast_dev_run", "true"])
    with caplog.at_level(logging.INFO):
        trainer(folder)
    assert "GPU available" in caplog.text


# --- progress ---


def epoch_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("epoch ")]


def test_a_line_an_epoch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = main(["fit", *SHORT, "--trainer.max_epochs", "2"])
    lines = epoch_lines(capsys.readouterr().out)
    number = r"[\d.e-]+"
    figures = rf"train_loss {number}  val_loss {number}  val_acc {number}"
    shares = rf"val_solver_converged {number}"
    for line, epoch in zip(lines, ("1/2", "2/2"), strict=True):
        assert re.fullmatch(
            rf"epoch {epoch}  {figures}  {shares}  [\d,]+ samples/s  [\d,]+ MiB  0:\d\d:\d\d left", line
        )
    assert f"val_acc {cli.config_init.fit.last_checkpoint.best_model_score or 0}" not in lines  # of this run
    assert lines[-1].endswith("0:00:00 left")


@pytest.mark.slow
def test_the_loss_of_a_line_is_the_mean_of_its_batches(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    own = ImageClassification.total

    def total(task: ImageClassification, loss: torch.Tensor, equilibria: Any) -> torch.Tensor:
        losses.append(loss.item())
        return own(task, loss, equilibria)

    monkeypatch.setattr(ImageClassification, "total", total)
    main(["fit", *SHORT, "--trainer.max_epochs", "2", "--test_after_fit", "false"])
    for line, part in zip(epoch_lines(capsys.readouterr().out), (losses[:4], losses[4:]), strict=True):
        assert f"train_loss {sum(part) / 4:.3g}" in line or f"train_loss {sum(part) / 4:.4g}" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "heads"),
    [
        (["--trainer.val_check_interval", "2", "--trainer.max_epochs", "1"], ["epoch 1/1  step 2  ", "epoch 1/1  tr"]),
        (["--trainer.max_epochs", "-1", "--trainer.max_steps", "6"], ["epoch 1  step 4/6  ", "epoch 2  step 6/6  "]),
        (["--trainer.check_val_every_n_epoch", "2", "--trainer.max_epochs", "2"], ["epoch 1/2  tr", "epoch 2/2  tr"]),
    ],
)
def test_runs_measured_otherwise(
    options: list[str], heads: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *SHORT, *options, "--test_after_fit", "false"])
    lines = epoch_lines(capsys.readouterr().out)
    assert [line.startswith(head) for line, head in zip(lines, heads, strict=True)] == [True] * len(heads)
    assert [" left" in line for line in lines] == [True] * len(heads)
    if "--trainer.check_val_every_n_epoch" in options:
        assert ["val_acc" in line for line in lines] == [False, True]


def test_a_run_without_end_has_no_time_left(folder: Path) -> None:
    endless = SimpleNamespace(callbacks=[], global_step=3, estimated_stepping_batches=float("inf"))
    clock = Clock()
    clock.start(SimpleNamespace(global_step=0))
    assert clock.left(endless) is None
    endless.estimated_stepping_batches = -1  # Lightning's for a stream without a length
    assert clock.left(endless) is None
    endless.estimated_stepping_batches = 3
    assert clock.left(endless) == "0:00:00"


def test_the_time_left_is_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = Clock(), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock.start(SimpleNamespace(global_step=10))
    now[0] = 160.0
    assert clock.left(SimpleNamespace(callbacks=[], global_step=20, estimated_stepping_batches=630)) == "1:01:00"


@pytest.mark.slow
def test_text_is_counted_in_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_wikitext(folder, monkeypatch)
    small = [
        "--data.root",
        "wikitext-2",
        "--data.vocab_size",
        "60",
        "--model.net.vocab_size",
        "60",
        "--model.net.width",
        "16",
    ]
    small += ["--model.net.cutoffs", "[15, 30]", "--model.net.inner_width", "16", "--data.eval_batch_size", "2"]
    main(["fit", "--config", "wikitext2_upg", *small, "--trainer.max_steps", "2", "--test_after_fit", "false"])
    out = capsys.readouterr().out
    assert re.search(r"parameters; words: [\d,]+ train, [\d,]+ val, [\d,]+ test$", out, re.M)
    assert " words/s" in out


@pytest.mark.slow
def test_fast_dev_run_has_no_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *LOUD, "--trainer.fast_dev_run", "true"])
    assert not epoch_lines(capsys.readouterr().out)


@pytest.mark.slow
def test_the_bar_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    cli = main(["fit", *SHORT, *BAR, "--trainer.max_epochs", "2"])
    assert [type(callback) for callback in cli.trainer.callbacks if isinstance(callback, pl.callbacks.ProgressBar)] == [
        Bar
    ]
    out = capsys.readouterr().out
    assert not re.search("^epoch .*samples/s", out, re.M)
    assert re.search(r"epoch 2/2: \|.* 4/4 .*left=0:00:00, train_loss=[\d.]+, val_acc=[\d.]+, converged=0", out)


@pytest.mark.slow
def test_a_bar_of_the_users_own_wins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--trainer.callbacks+=TQDMProgressBar", "--trainer.callbacks.refresh_rate=2"]
    cli = main(["fit", *SHORT, *BAR, *own, "--trainer.max_epochs", "1"])
    bars = [callback for callback in cli.trainer.callbacks if isinstance(callback, TQDMProgressBar | EpochLines)]
    assert [type(bar) for bar in bars] == [TQDMProgressBar]
    assert bars[0].refresh_rate == 2


# --- the end in words ---


def task_of(**options: Any) -> ImageClassification:
    small = MDEQ(in_channels=1, channels=(4,), groups=2, head_channels=(2,), solver=Anderson(max_steps=7, **options))
    return ImageClassification(small)


def figures(share: float) -> dict[str, float]:
    solver = {"test_solver_converged": share, "test_solver_steps": 12.34, "test_solver_residual": 0.1}
    return {"test_loss": 0.5, "test_acc": 0.98888, "val_acc": 0.1, "test_spectral_radius": 0.3, **solver}


def test_what_was_reached_in_words() -> None:
    assert list(in_words(figures(0.997), "test", task_of())) == [
        "test accuracy 0.9889; equilibrium found for 99.7 % of the samples, 12.3 steps on average"
    ]
    assert "for 99.9 % of" in next(in_words(figures(0.9999), "test", task_of()))


def test_few_equilibria_come_with_what_to_type() -> None:
    task = task_of()
    advice = list(in_words(figures(0.899), "test", task))[1]
    assert "`--model.penalty JacobianPenalty --model.penalty.weight 0.5`" in advice
    assert re.search(r"`--model.net.solver.(eval_)?max_steps 14`", advice)
    task.net.solver.eval_max_steps = 20
    assert "`--model.net.solver.eval_max_steps 40`" in list(in_words(figures(0.899), "test", task))[1]
    task.penalty = JacobianPenalty(weight=0.5)
    advice = list(in_words(figures(0.899), "test", task))[1]
    assert "`--model.penalty.weight 1`" in advice and "JacobianPenalty" not in advice


def test_nothing_of_it_where_nothing_is_solved() -> None:
    measured = {"test_loss": 0.5, "test_acc": 0.98888}
    assert list(in_words(measured, "test", ImageClassification(NeuralODE()))) == ["test accuracy 0.9889"]
    assert list(in_words(measured, "test", task_of())) == ["test accuracy 0.9889"]  # with `Unrolled`
    assert list(in_words(figures(0), "test", task_of(rtol=0.0))) == ["test accuracy 0.9889"]  # no test of convergence
