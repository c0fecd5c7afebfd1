"""How much memory a run has taken."""

import re
from contextlib import suppress
from pathlib import Path

import pytorch_lightning as pl
import torch

PROCESS = Path("/proc/self")  # of Linux


def forget_peak(trainer: pl.Trainer) -> None:
    """Let the largest memory be that from here on, where the system can."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone has it
        (PROCESS / "clear_refs").write_text("5")


def peak_memory(trainer: pl.Trainer) -> int | None:
    """Return the largest memory in MiB: of the GPU, or of the process with all that it has loaded. None: not known."""
    if trainer.strategy.root_device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20)
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", (PROCESS / "status").read_text())
        return round(int(found[1]) / 2**10) if found else None
    return None
