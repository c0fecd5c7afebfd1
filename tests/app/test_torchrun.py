"""Two processes that torchrun starts: one run, one folder, and a continuation that is the uninterrupted run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.runs import TINY, assert_equal

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
def test_edges_of_a_torchrun_launch(folder: Path) -> None:
    printed = torchrun(*FIT, "--name", "whole", "--trainer.max_epochs", "2")
    assert printed.count("run: checkpoints/whole\n") == 1
    torchrun(*FIT, "--name", "parts", "--trainer.max_epochs", "1")
    torchrun("fit", "--ckpt_path", "checkpoints/parts/last.ckpt", "--trainer.max_epochs", "2")
    assert sorted(os.listdir("checkpoints")) == ["parts", "whole"]
    whole, parts = (torch.load(f"checkpoints/{name}/last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 6
    for part in ("state_dict", "optimizer_states", "rng_state"):
        assert_equal(whole[part], parts[part])
