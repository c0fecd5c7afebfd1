"""Which of several processes does a run."""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deq_lightning.app.runs import Lock, is_first

HEARTBEAT = 20.0  # seconds
DEAD = 600.0  # seconds without a heartbeat, after which a process is taken for dead


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Claim a run for this process, for as long as the block lasts; yields whether that was possible.

    A claim is a file with the process in it, whose time of change is its heartbeat. That of a process that is gone is
    taken over, of one on another machine after a time without a heartbeat.

    Args:
        folder: of the claims; processes that share it, on any machine, share the runs.
        name: of the run.
    """
    if not is_first():  # of several processes of one run, which go where the first one goes
        yield True
        return
    path = folder / name
    if not _take(path):
        yield False
        return
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beats.start()
    try:
        yield True
    finally:
        done.set()
        beats.join()
        with suppress(OSError):
            path.unlink()


def _take(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(path.parent)  # so that of two that find a dead claim one takes it
    try:
        if path.exists() and _lives(path):
            return False
        path.write_text(json.dumps({"host": platform.node(), "process": os.getpid()}))
        return True
    finally:
        lock.release()


def _lives(path: Path) -> bool:
    try:
        claim = json.loads(path.read_text())
        host, process = claim["host"], int(claim["process"])
        silent = time.time() - path.stat().st_mtime
    except (OSError, ValueError, LookupError, TypeError):
        return False
    if silent >= DEAD:
        return False  # also here, where another process may have its number by now
    if host != platform.node():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return process != os.getpid()


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(path)
