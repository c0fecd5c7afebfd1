"""Texts in UTF-8, from files and from standard input."""

import sys
from pathlib import Path

from deq_lightning.data.errors import DatasetNotFoundError


def read_text(file: Path) -> str:
    """Return the text of a file, or for `-` that of standard input.

    Raises:
        DatasetNotFoundError: if it is empty, or not UTF-8; names it.
    """
    try:
        text = _bytes_of(file).decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DatasetNotFoundError(
            f"`{file}` is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Save it as UTF-8, or "
            "leave it out."
        ) from error
    except OSError as error:
        raise DatasetNotFoundError(
            f"`{file}` cannot be read ({error.strerror}). Make it readable, or leave it out."
        ) from error
    if not text.strip():
        raise DatasetNotFoundError(f"`{file}` is empty. Write a text into it, or remove it.")
    return text


def _bytes_of(file: Path) -> bytes:
    return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
