"""Runs that stop early: what they leave on disk, and how to continue them."""

import os
import shlex
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from deq_lightning.app.quiet import quiet
from deq_lightning.app.runs import CONFIG, from_here, say
from deq_lightning.callbacks import DivergenceGuard

Main = TypeVar("Main", bound=Callable[..., Any])
OWN = {CONFIG, "healthy.ckpt", "hparams.yaml"}  # what a run may write before its first step, beside its curves


class Interrupted(SystemExit):
    """The program was stopped; `checkpoint` is the newest one of the run, if there is one."""

    def __init__(self, number: signal.Signals, checkpoint: Path | None = None) -> None:
        super().__init__(128 + number)  # as shells have it
        self.checkpoint = checkpoint


class Footprint:
    """What a fit writes into its folder. Make it before the run writes anything.

    Args:
        folder: the run's folder, which may exist.
        step: with which the run goes on; 0 for a new one.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.folder = folder
        self.step = step
        self.missing = [path for path in (folder, *folder.parents) if not path.exists()]
        self.before = set(folder.glob("*"))
        self.began = time.time()

    def remove(self) -> None:
        """Delete what this process has written, and its folders where they are empty."""
        files = set(self.folder.glob("*")) - self.before
        curves = {path for path in files if path.match(f"events.out.tfevents.*.{os.getpid()}.*")}
        others = files - curves
        if self.folder in self.missing and {path.name for path in others} <= OWN:  # else of a process beside this one
            curves |= others
        for path in curves:
            path.unlink(missing_ok=True)
        for path in self.missing:
            with suppress(OSError):  # there is something in it, or it never came to be
                path.rmdir()

    def newest(self, *paths: Path | str | None) -> Path | None:
        """Return the first of these checkpoints that is whole and of this run."""
        written = (Path(path) for path in paths if path and zipfile.is_zipfile(path))
        return next((path for path in written if path.stat().st_mtime >= self.began), None)


@contextmanager
def stoppable(
    trainer: pl.Trainer, footprint: Footprint | None, last: ModelCheckpoint, guard: DivergenceGuard
) -> Iterator[None]:
    """Delete what a fit wrote that ends before its first step, and turn every interruption into `Interrupted`.

    Args:
        trainer: runs it.
        footprint: of the fit; None for everything else.
        last: writes the last checkpoint.
        guard: writes the healthy ones.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM.
    """
    try:
        yield
    except BaseException as error:
        if footprint is not None and trainer.is_global_zero and trainer.global_step in (0, footprint.step):
            footprint.remove()
        number = _signal_of(error)
        if number is None:
            raise
        healthy = guard.saved[0] if guard.saved and guard.saved[1] > 0 else None  # before a step it is of no use
        # Where the test has begun, it has restored the callbacks as they were with the best checkpoint.
        file = Path(last.dirpath or "") / f"{last.filename}.ckpt"
        newest = footprint.newest(last.best_model_path, file, healthy) if footprint is not None else None
        raise Interrupted(number, newest) from None


def _signal_of(error: BaseException) -> signal.Signals | None:
    """Return the signal behind an error; Lightning has a kind of its own for each."""
    if isinstance(error, SIGTERMException):
        return signal.SIGTERM
    exited = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    return signal.SIGINT if exited or isinstance(error, KeyboardInterrupt) else None


def interruptible(main: Main) -> Main:
    """Make the command line end with the command that continues the run and the exit status of the signal."""

    @wraps(main)
    def wrapped(args: Sequence[str], run: bool = True) -> Any:
        args = list(args)
        try:
            with quiet(), _sigterm_raises():
                return main(args, run)
        except KeyboardInterrupt:
            stop = Interrupted(signal.SIGINT)
        except SIGTERMException:
            stop = Interrupted(signal.SIGTERM)
        except Interrupted as error:
            stop = error
        for line in _way_on(args, stop.checkpoint):
            say(line, flush=True)
        raise SystemExit(stop.code)

    return cast(Main, wrapped)


def _way_on(args: list[str], checkpoint: Path | None) -> Iterator[str]:
    """Yield the line that says how to go on, where there is something to go on with."""
    program = "continue: python -m deq_lightning"
    continued = any(arg.split("=")[0] == "--ckpt_path" for arg in args)
    if args[:1] == ["cross_validate"] or (args[:1] == ["fit"] and checkpoint is None and continued):
        yield f"{program} {shlex.join(args)}"
    elif checkpoint is not None:
        yield f"{program} fit --ckpt_path {shlex.quote(from_here(checkpoint))}"
    elif args[:1] == ["fit"]:
        yield "stopped before the first checkpoint: there is nothing to continue yet"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into an exception while Lightning does not listen for it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        del frame
        if signal.getsignal(number) is stop:  # Lightning's handler calls this one too, and waits for the step to end
            raise SIGTERMException(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
