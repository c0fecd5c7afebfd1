"""What a data module says when the data cannot be used."""


class DataError(Exception):
    """The data cannot be used as asked for; the message is one line that says what to type.

    Args:
        message: that line. PyTorch makes an error of a loader's worker anew, from its traceback: then the line at the
            traceback's end.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class DatasetNotFoundError(DataError, FileNotFoundError):
    """A dataset is missing or damaged."""


class SplitError(DataError, ValueError):
    """A split does not fit the dataset."""


def brief(error: Exception) -> str:
    """Return the first line of an error, to stand in brackets."""
    return (str(error).splitlines() or [type(error).__name__])[0].strip(" .:")
