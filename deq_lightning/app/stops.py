"""Runs that stop early: what they leave on disk, and how to continue them."""

import os
import shlex
import shutil
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
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from deq_lightning.app.found import command_for
from deq_lightning.app.quiet import quiet
from deq_lightning.app.runs import Lock, from_here, is_first, say
from deq_lightning.callbacks import DivergenceGuard
from deq_lightning.data import DataError
from deq_lightning.files import StorageError, not_written, remove_drafts

Main = TypeVar("Main", bound=Callable[..., Any])


class Interrupted(SystemExit):
    """The program was stopped; `checkpoint` is the newest one of the run, if there is one."""

    def __init__(self, number: signal.Signals, checkpoint: Path | None = None) -> None:
        super().__init__(128 + number)  # as shells have it
        self.checkpoint = checkpoint


class Stop(Callback):
    """Ends a prediction after SIGTERM; Lightning's own loops look for it in training and evaluation alone."""

    def on_predict_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Stop between two batches."""
        del args
        if trainer.received_sigterm:
            raise SIGTERMException


class Footprint:
    """What a fit writes into its folder. Make it before the run writes anything.

    Args:
        folder: the run's folder.
        step: with which the run goes on; 0 for a new one.
        missing: the folder and those above it that there were not before, the innermost first.
    """

    def __init__(self, folder: Path, step: int = 0, missing: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.step = step
        self.missing = missing
        self.lock = Lock(folder)
        if is_first():
            remove_drafts(folder)
        self.before = set(folder.glob("*"))
        self.began = time.time()

    def release(self) -> None:
        """Let other processes into the folder."""
        self.lock.release()

    def remove(self) -> None:
        """Delete what this process has written, and its folders where they are empty."""
        if self.folder in self.missing:  # nobody else writes there
            shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.folder.glob(f"events.out.tfevents.*.{os.getpid()}.*"):
            if path not in self.before:
                path.unlink(missing_ok=True)
        for path in self.missing:
            with suppress(OSError):  # there is something in it, or it never came to be
                path.rmdir()

    def newest(self, *paths: Path | str | None) -> Path | None:
        """Return the first of these checkpoints that is whole and of this run."""
        written = (Path(path) for path in paths if path and zipfile.is_zipfile(path))
        return next((path for path in written if path.stat().st_mtime >= self.began), None)


@contextmanager
def stoppable(footprint: Footprint | None, last: ModelCheckpoint, guard: DivergenceGuard) -> Iterator[None]:
    """Turn every interruption into `Interrupted`, and whatever cannot be written into a `StorageError`.

    Args:
        footprint: of the fit; None for everything else.
        last: writes the last checkpoint.
        guard: writes the healthy ones.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM.
        StorageError: if the disk is full or the like; names the last whole checkpoint.
    """
    try:
        yield
    except BaseException as error:
        number = _signal_of(error)
        storage = isinstance(error, OSError | StorageError) and not isinstance(error, DataError)
        if number is None and (footprint is None or not storage):
            raise
        healthy = guard.saved[0] if guard.saved and guard.saved[1] > 0 else None  # before a step it is of no use
        # Where the test has begun, it has restored the callbacks as they were with the best checkpoint.
        file = Path(last.dirpath or "") / f"{last.filename}.ckpt"
        newest = footprint.newest(last.best_model_path, file, healthy) if footprint is not None else None
        if number is not None:
            raise Interrupted(number, newest) from None
        reason = not_written(error) if isinstance(error, OSError) else str(error)
        raise StorageError(f"{reason} {_whole(newest or file)}") from error


def _whole(checkpoint: Path) -> str:
    """Say where to go on after something could not be written."""
    if not zipfile.is_zipfile(checkpoint):
        return "There is no checkpoint of this run."
    return f"The last whole checkpoint is {from_here(checkpoint)}. To go on: {command_for('fit', checkpoint)}"


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


OF_MANY_RUNS = ("compare", "search", "cross_validate")  # which go on by themselves when typed again


def _way_on(args: list[str], checkpoint: Path | None) -> Iterator[str]:
    """Yield the line that says how to go on, where there is something to go on with."""
    continued = any(arg.split("=")[0] == "--ckpt_path" for arg in args)
    by_itself = bool(args) and args[0] in OF_MANY_RUNS
    if by_itself or (args[:1] == ["fit"] and checkpoint is None and continued):
        yield f"continue: python -m deq_lightning {shlex.join(args)}"
    elif checkpoint is not None:
        yield f"continue: {command_for('fit', checkpoint)}"
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
