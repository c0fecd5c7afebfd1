"""Files are there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from deq_lightning.files import StorageError, remove_drafts, replacing


def no_room(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_durable_replacement_is_complete(folder: Path) -> None:
    Path("file").write_text("old")
    with replacing("file", "w") as file:
        file.write("new")
        assert Path("file").read_text() == "old"
    assert Path("file").read_text() == "new"
    assert os.listdir() == ["file"]


def test_durable_against_an_exception(folder: Path) -> None:
    Path("file").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing("file", "w") as file:
        file.write("half")
        1 / 0  # noqa: B018
    assert Path("file").read_text() == "old"
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_durable_against_a_full_disk(step: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), no_room)
    with pytest.raises(StorageError, match=r"^`file` could not be written: No space left on device\.$"):
        with replacing("file", "w") as file:
            file.write("new")
    assert Path("file").read_text() == "old"
    assert os.listdir() == ["file"]


def test_durable_in_a_folder_that_is_gone(folder: Path) -> None:
    with pytest.raises(StorageError, match=r"`gone/file` could not be written: No such file or directory"):
        with replacing("gone/file"):
            raise AssertionError


def test_durable_drafts_of_killed_processes_are_removed(folder: Path) -> None:
    for name in (".last.ckpt.1.part", "last.ckpt", ".hidden"):
        Path(name).touch()
    remove_drafts(Path())
    assert sorted(os.listdir()) == [".hidden", "last.ckpt"]


def test_durable_in_place_of_a_folder(folder: Path) -> None:
    for name in (".", "taken"):
        Path(name).mkdir(exist_ok=True)
        with pytest.raises(StorageError, match=r"could not be written: it is a folder\. Name a file in it\.$"):
            with replacing(name):
                raise AssertionError("nothing is to be written")
