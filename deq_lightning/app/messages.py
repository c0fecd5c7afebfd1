"""What the command line says of a mistake: what must hold, what came and what to type."""

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn


class UsageError(Exception):
    """Something the user typed cannot be done; the message says what must hold, what came and what to type."""


def suggest(name: str, known: Sequence[str]) -> str:
    """Return a sentence with the nearest of the known names, and all of them."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    question = f"Did you mean {' or '.join(near)}? " if near else ""
    return question + (f"Known: {', '.join(known)}." if known else "")


class Options(argparse.ArgumentParser):
    """A parser of a command's own options, which refuses in a line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where to look.

        Raises:
            UsageError: always.
        """
        command = self.prog.rpartition(" ")[2]
        raise UsageError(f"{message}. Type `{command} --help` for its options.")
