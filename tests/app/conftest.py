"""What tests of the subcommands share."""

from pathlib import Path

import pytest
from support.runs import BITS, QUIET

from deq_lightning.cli import main


@pytest.fixture
def best(folder: Path) -> str:
    """A checkpoint of a short run on strings of 4 bits, tested on 4 and 6."""
    main(["fit", *BITS, "--trainer.max_epochs", "1", "--test_after_fit", "false", "--name", "run", *QUIET])
    return str(folder / "checkpoints/run/best.ckpt")
