"""Lightning without its routine messages: the header says them shorter, or they are no news."""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Each is written with `info`. Warnings never are, nor is why a run has stopped early.
NOISE = re.compile(
    "💡 Tip: "  # of other packages
    "|[GTH]PU available: |LOCAL_RANK: |Using .* Automatic Mixed Precision|Seed set to "  # in the header
    "|Restoring states from the checkpoint|Restored all states|Loaded model weights from the checkpoint"
    "|`Trainer.fit` stopped: `max_(epochs|steps)=.*` reached"
    "|Loading `train_dataloader` to estimate"
)
LOGGERS = (  # filters do not reach the loggers below
    "pytorch_lightning.utilities.rank_zero",
    "pytorch_lightning.accelerators.cuda",
    "lightning_fabric.utilities.seed",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave Lightning's routine messages out within the context."""

    def is_news(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or NOISE.search(record.getMessage()) is None

    def tell(args: Any) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":  # TensorBoard's: the next write raises its error again
            hook(args)

    hook, threading.excepthook = threading.excepthook, tell
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(is_news)
    try:
        yield
    finally:
        threading.excepthook = hook
        for logger in loggers:
            logger.removeFilter(is_news)
