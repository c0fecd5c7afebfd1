"""Errors of data modules whose data cannot be used."""

import re

# What moves a terminal's cursor, colours it, or turns the order of its letters round.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return text of foreign origin with its control characters escaped, so that a terminal shows and obeys none."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class DataError(Exception):
    """The data cannot be used as asked for; the message is one line that says what to type.

    Args:
        message: that line, which may quote the data: control characters are escaped. PyTorch rebuilds an error of a
            loader's worker from its traceback: then the traceback's last line is taken.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip()))


class DatasetNotFoundError(DataError, FileNotFoundError):
    """A dataset is missing or damaged."""


class SplitError(DataError, ValueError):
    """A split does not fit the dataset."""


def brief(error: Exception) -> str:
    """Return the first line of an error, for use in parentheses."""
    return (str(error).splitlines() or [type(error).__name__])[0].strip(" .:")
