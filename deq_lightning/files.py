"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from deq_lightning.configured import RunError

DRAFT = ".part"


class StorageError(RunError):
    """Something cannot be written; the message says what and why."""


@contextmanager
def replacing(path: str | Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a draft beside `path` that takes its place once all of it is on the disk; until then the old file stays.

    A killed process leaves a hidden draft and the old file; an exception leaves the old file alone.

    Args:
        path: the file; its folder exists.
        mode: as for `open`, a mode that writes.
        options: others of `open`.

    Raises:
        StorageError: if the disk is full, the folder is gone, or anything else prevents writing.
    """
    path = Path(path)
    if path.is_dir():
        raise StorageError(f"`{path}` could not be written: it is a folder. Name a file in it.")
    draft = path.with_name(f".{path.name}.{os.getpid()}{DRAFT}")
    try:
        with draft.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _to_disk(path.parent)
    except OSError as error:
        if error.filename not in (None, str(draft)):
            raise  # of something else that the caller does meanwhile
        raise StorageError(not_written(error, path)) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def not_written(error: OSError, path: str | Path | None = None) -> str:
    """Say in a sentence what could not be written."""
    place = path or (error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename or ""))
    return f"{f'`{place}`' if place else 'a file'} could not be written: {error.strerror or error}."


def remove_drafts(folder: Path) -> None:
    """Delete what killed processes have left in a folder that no other process writes to."""
    for draft in folder.glob(f".*{DRAFT}"):
        draft.unlink(missing_ok=True)


def _to_disk(folder: Path) -> None:
    """Make the new name last; not every file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
