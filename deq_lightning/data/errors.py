"""Errors of data modules whose data cannot be used."""


class DataError(Exception):
    """The data cannot be used as asked for; the message is one line that says what to type.

    Args:
        message: that line. PyTorch rebuilds an error of a loader's worker from its traceback: then the traceback's last
            line is taken.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class DatasetNotFoundError(DataError, FileNotFoundError):
    """A dataset is missing or damaged."""


class SplitError(DataError, ValueError):
    """A split does not fit the dataset."""


def brief(error: Exception) -> str:
    """Return the first line of an error, for use in parentheses."""
    return (str(error).splitlines() or [type(error).__name__])[0].strip(" .:")
