"""Two processes that torchrun starts: one run, one folder, and a continuation that is the uninterrupted run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.runs import QUIET, TINY, assert_equal

TWO = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]
FIT = [
    "fit",
    *TINY,
    *TWO,
    "--test_after_fit",
    "false",
    "--trainer.limit_train_batches",
    "3",
    "--model.lr_scheduler",
    "null",
]

SEGMENTS = [
    *(
        "fit",
        "--config",
        "sudoku4_recursive",
        *QUIET,
        *TWO,
        "--test_after_fit",
        "false",
        "--model.lr_scheduler",
        "null",
    ),
    *("--data.train_size", "24", "--data.val_size", "4", "--data.batch_size", "4", "--model.net.width", "16"),
    *("--trainer.limit_train_batches", "3", "--trainer.check_val_every_n_epoch", "1"),
]


def torchrun(*typed: str) -> str:
    """Return what is printed."""
    own = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "deq_lightning", *typed]
    ended = subprocess.run(
        [sys.executable, *command],
        env={**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fit", [FIT, SEGMENTS], ids=["digits", "puzzles that stay for several steps"])
def test_edges_of_a_torchrun_launch(folder: Path, fit: list[str]) -> None:
    printed = torchrun(*fit, "--name", "whole", "--trainer.max_epochs", "2")
    assert printed.count("run: checkpoints/whole\n") == 1
    torchrun(*fit, "--name", "parts", "--trainer.max_epochs", "1")
    torchrun("fit", "--ckpt_path", "checkpoints/parts/last.ckpt", "--trainer.max_epochs", "2")
    assert sorted(os.listdir("checkpoints")) == ["parts", "whole"]
    whole, parts = (torch.load(f"checkpoints/{name}/last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 6
    for part in ("state_dict", "optimizer_states", "rng_state", "segments"):
        assert_equal(whole.get(part), parts.get(part))
    assert len(whole.get("segments", "xx")) == 2  # of each process
