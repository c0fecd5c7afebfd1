"""Small runs: of the command line, and of a plain trainer."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from deq_lightning import MDEQ, Anderson, ImageClassification

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]

TINY = [
    *("--config", "digits_upg", *QUIET),
    *("--model.net.channels", "[8]", "--model.net.groups", "4", "--model.net.head_channels", "[4]"),
    *("--model.net.final_channels", "16", "--model.net.solver.max_steps", "5", "--model.net.dropout", "0.2"),
    *("--model.net.solver.eval_max_steps", "5"),
]
"""Arguments that make the digits run take a second or two, with every source of randomness in it."""

BITS = [
    *("--model", "DensePrediction", "--model.net", "EquilibriumReasoner", "--model.net.width", "8"),
    *("--model.net.solver", "FixedPointIteration", "--data", "PrefixSums", "--data.length", "4"),
    *("--data.train_size", "8", "--data.val_size", "2", "--data.test_size", "4", "--data.test_lengths", "[4, 6]"),
    *("--data.batch_size", "4"),
]
"""Task, network and data of a run on strings of 4 bits, with test sets of 4 and 6."""

SMALL = dict(in_channels=1, channels=(4,), groups=2, expansion=2, head_channels=(2,), final_channels=8, dropout=0.2)


def digits_task(max_steps: int = 12) -> ImageClassification:
    torch.manual_seed(0)
    net = MDEQ(**SMALL, solver=Anderson(max_steps=max_steps, rtol=1e-2))
    return ImageClassification(net, channels_last=False)  # one format in a run and in what is computed after it


def trainer(folder: Path, *callbacks: pl.Callback, **options: object) -> pl.Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, accelerator="cpu")
    steps = {"default_root_dir": folder, "max_steps": 4, "limit_val_batches": 2, "log_every_n_steps": 1}
    return pl.Trainer(**{**steps, **quiet, **options}, callbacks=list(callbacks))


def weights(task: pl.LightningModule) -> list[torch.Tensor]:
    return [value.clone() for value in task.state_dict().values()]


def assert_equal(a: Any, b: Any) -> None:
    """Compare nested data, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b
