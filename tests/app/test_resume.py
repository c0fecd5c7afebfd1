"""An interrupted and resumed run equals the uninterrupted one, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.marks import slow
from support.runs import TINY, assert_equal

from deq_lightning.cli import main


def last(run: str) -> dict[str, Any]:
    return torch.load(Path("checkpoints") / run / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--model.lr_scheduler", "null"], id="upg"),
        # 4 steps an epoch: the stage ends in the third of four epochs, after the interruption
        slow(
            [
                *("--model.lr_scheduler", "null"),
                *("--gradient.pretrain_steps", "10", "--gradient.unroll_steps", "2"),
            ],
            id="across pretraining",
        ),
        slow(
            [
                *("--gradient", "Implicit", "--gradient.adjoint_solver", "Anderson"),
                *("--gradient.adjoint_solver.max_steps", "6"),
                *(
                    "--model.lr_scheduler",
                    "torch.optim.lr_scheduler.CosineAnnealingLR",
                    "--model.lr_scheduler.T_max",
                    "12",
                ),
            ],
            id="implicit with a schedule",
        ),
    ],
)
def test_two_and_two_epochs_equal_four(options: list[str], folder: Path) -> None:
    fit = ["fit", *TINY, "--test_after_fit", "false", "--trainer.limit_train_batches", "4", *options]
    main([*fit, "--name", "whole", "--trainer.max_epochs", "4"])
    main([*fit, "--name", "parts", "--trainer.max_epochs", "2"])
    assert last("parts")["epoch"] == 1
    # a different random state, as in a new process
    torch.manual_seed(123)
    main(["fit", "--ckpt_path", "checkpoints/parts/last.ckpt", "--trainer.max_epochs", "4"])
    whole, parts = last("whole"), last("parts")
    for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "rng_state", "loops"):
        assert_equal(whole[part], parts[part])
    assert whole["callbacks"]["GradientStrategy"] == parts["callbacks"]["GradientStrategy"] == {"step": 16}


@pytest.mark.slow
def test_cosine_to_end_resumes_and_ends_at_its_minimum(folder: Path) -> None:
    schedule = ["--model.lr_scheduler", "CosineToEnd", "--model.lr_scheduler.eta_min", "1e-5"]
    fit = ["fit", *TINY, "--test_after_fit", "false", "--trainer.limit_train_batches", "4", *schedule]
    cli = main([*fit, "--name", "parts", "--trainer.max_epochs", "2"])
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)
    main(["fit", "--ckpt_path", "checkpoints/parts/last.ckpt", "--trainer.max_epochs", "3"])
    assert last("parts")["lr_schedulers"][0]["T_max"] == 12
