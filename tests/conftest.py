"""What all tests share."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]

TINY = [
    *("--config", "digits_upg", *QUIET),
    *("--model.net.channels", "[8]", "--model.net.groups", "4", "--model.net.head_channels", "[4]"),
    *("--model.net.final_channels", "16", "--model.net.solver.max_steps", "5", "--model.net.dropout", "0.2"),
]
"""Arguments that make the digits run take a second or two, with every source of randomness in it."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
