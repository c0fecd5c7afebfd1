"""What version 0.1.0 has saved goes on working."""

import shutil
from pathlib import Path

import pytest
import torch

from deq_lightning import ImageClassification
from deq_lightning.cli import main

SAVED = Path(__file__).parents[1] / "support" / "saved" / "digits_upg_0_1_0"


@pytest.fixture
def old(folder: Path) -> str:
    shutil.copytree(SAVED, folder / "old")
    return "old/best.ckpt"


def test_it_is_tested(old: str) -> None:
    metrics = main(["test", "--ckpt_path", old]).trainer.callback_metrics
    assert metrics["test_acc"] >= 0.985
    assert metrics["test_solver_converged"] < 0.5  # in the ten evaluations of its config


@pytest.mark.slow
def test_it_finds_its_equilibria_with_a_larger_budget(old: str) -> None:
    metrics = main(["test", "--ckpt_path", old, "--model.net.solver.eval_max_steps", "30"]).trainer.callback_metrics
    assert metrics["test_acc"] >= 0.985
    assert metrics["test_solver_converged"] >= 0.95


def test_it_is_loaded_in_python(old: str) -> None:
    task = ImageClassification.load_from_checkpoint(old)
    assert task.net.solver.max_steps == 10


@pytest.mark.slow
def test_it_is_continued(old: str) -> None:
    epochs = torch.load(old, weights_only=True)["epoch"] + 2  # the one saved is over
    short = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", "--test_after_fit", "false"]
    cli = main(["fit", "--ckpt_path", old, "--trainer.max_epochs", str(epochs), *short])
    assert cli.trainer.current_epoch == epochs
