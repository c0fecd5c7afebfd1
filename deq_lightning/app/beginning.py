"""The begin of a run: its folder, and what is written there."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import loggers

from deq_lightning.app.found import RUN, option
from deq_lightning.app.keys import CHECKPOINTS
from deq_lightning.app.runs import claim_folder, run_name
from deq_lightning.app.stops import Footprint


def begin(config: Namespace, checkpoint: dict[str, Any] | None, old: Path | None) -> Footprint:
    """Choose the folder of a fit, make it if it is a new one, and send the curves there.

    Args:
        config: of the fit; changed.
        checkpoint: with which a run goes on. None: it begins.
        old: the folder of that checkpoint, in which the run goes on unless another name is typed.
    """
    folder, made = old, list[Path]()
    if folder is None or config.name is not None:
        parent, writes = Path(config.trainer.default_root_dir or "checkpoints"), not config.trainer.fast_dev_run
        folder, made = claim_folder(parent, config.name or run_name(config), writes)
    if config.trainer.logger is None:
        place = Namespace(save_dir=str(folder), name="", version="", default_hp_metric=False)
        config.trainer.logger = Namespace(class_path="pytorch_lightning.loggers.TensorBoardLogger", init_args=place)
    return Footprint(folder, (checkpoint or {}).get("global_step", 0), made)


def with_logger_folder(args: Sequence[str]) -> list[str]:
    """Let a logger that must be told its folder, and was not, write into that of the run."""
    name = (option(args, "--trainer.logger") or "").rsplit(".", 1)[-1]
    folder = inspect.signature(getattr(loggers, name, object)).parameters.get("save_dir")
    typed = option(args, "--trainer.logger.save_dir")
    needed = folder is not None and folder.default is inspect.Parameter.empty and typed is None
    return [*args, f"--trainer.logger.save_dir={RUN}"] if needed else list(args)


def write_to(folder: Path, config: Namespace) -> None:
    """Let predictions, checkpoints and curves go to a folder, unless other ones were typed."""
    logger = config.trainer.logger
    if isinstance(logger, Namespace) and logger.get("init_args.save_dir") == RUN:
        logger.init_args.update(Namespace(save_dir=str(folder), name=""))  # each start has a version of its own
    config.predictions.path = config.predictions.path or str(folder / "predictions.csv")
    for key in (*CHECKPOINTS, "guard"):
        config[key].dirpath = config[key].dirpath or str(folder)
