"""The file of what a run has come to."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.runs import QUIET, TINY

import deq_lightning
from deq_lightning.app.results import _figures
from deq_lightning.cli import main


def test_the_results_are_those_of_the_run(folder: Path) -> None:
    cli = main(
        ["fit", *TINY, *QUIET, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--name", "tiny"]
    )
    run = folder / "checkpoints/tiny"
    found = json.loads((run / "results.json").read_text())
    best, tested = cli.config_init.fit.best_checkpoint, cli.trainer.callback_metrics
    assert found["monitor"] == "val_acc" and found["best"] == best.best_model_score.item()
    assert (run / found["checkpoint"]).is_file()
    assert found["val"]["val_acc"] == found["best"] and found["test"]["test_acc"] == tested["test_acc"].item()
    assert found["steps"] == 3 and math.isclose(found["seconds_per_step"], found["seconds"] / 3, abs_tol=1e-2)
    task = deq_lightning.load(run / found["checkpoint"])
    assert found["parameters"] == sum(one.numel() for one in task.parameters())
    assert found["peak_memory_mib"] > 50 and found["hardware"]["device"] == "cpu"
    assert found["versions"]["deq_lightning"] == deq_lightning.__version__
    assert found["settings"]["data"]["class_path"].endswith("Digits")


def test_what_is_not_finite_is_null() -> None:
    logged = {"val_loss": torch.tensor(math.nan), "val_acc": torch.tensor(0.5), "train_loss": torch.tensor(1.0)}
    assert _figures(SimpleNamespace(callback_metrics=logged), "val_") == {"val_loss": None, "val_acc": 0.5}


def test_the_curves_are_those_of_tensorboard_over_all_starts(folder: Path) -> None:
    limits = ["--trainer.limit_train_batches", "3", "--trainer.log_every_n_steps", "1"]
    run = folder / "checkpoints/tiny"
    main(["fit", *TINY, *limits, "--trainer.max_epochs", "1", "--name", "tiny", "--test_after_fit", "false"])
    first = list(csv.DictReader((run / "metrics.csv").open()))
    seconds = json.loads((run / "results.json").read_text())["seconds"]
    main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "2", "--test_after_fit", "false"])
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    losses = [row["train_loss"] for row in rows if row["train_loss"]]
    assert len(losses) == 6 and losses[:3] == [row["train_loss"] for row in first if row["train_loss"]]
    assert sum(bool(row["val_acc"]) for row in rows) == 2 and "hp_metric" not in rows[0]
    assert [int(row["step"]) for row in rows] == sorted({int(row["step"]) for row in rows})
    whole = json.loads((run / "results.json").read_text())
    assert whole["seconds"] > seconds  # of both starts
    assert math.isclose(whole["seconds_per_step"], whole["seconds"] / 6, abs_tol=1e-2)
    before = (run / "results.json").read_bytes()
    main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "2", "--test_after_fit", "false"])
    assert (run / "results.json").read_bytes() == before  # nothing was left to train


def test_nothing_is_missed_where_a_run_is_tested(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Lightning tells of callbacks that a checkpoint has the state of and a trainer does not have."""
    main(["fit", *TINY, *QUIET, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--name", "tiny"])
    for command in ("test", "predict"):
        main([command, "--ckpt_path", "checkpoints/tiny/best.ckpt", *QUIET])
    assert not [str(one.message) for one in recwarn if "callbacks used to create the checkpoint" in str(one.message)]
