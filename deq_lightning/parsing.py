"""What the command line adds to its parser: configs found by name, and errors of a line or two."""

import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile
from pytorch_lightning.cli import LightningArgumentParser

PACKAGE = Path(__file__).parent
BUNDLED_CONFIGS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # in a wheel, in a checkout


class UsageError(Exception):
    """Something the user typed cannot be done; the message says what must hold, what came and what to type."""


class Parser(LightningArgumentParser):
    """Reports an error as a line or two on standard error and exits with status 2.

    `JSONARGPARSE_DEBUG=true` in the environment raises the error instead, with its traceback.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message without the usage, which has dozens of lines."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        print(f"error: {self._in_brief(message)}", file=sys.stderr)
        raise SystemExit(2)

    def _in_brief(self, message: str) -> str:
        """Keep the lines that say what is wrong, and add the nearest name to one that is not known."""
        return message


class ConfigByName(ActionConfigFile):
    """Takes a path or the bare name of a config."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Load the config found."""
        try:
            found = find_config(values)
        except UsageError as error:
            parser.error(str(error), error)
        super().__call__(parser, cfg, str(found), option_string)


def find_config(name: str) -> Path:
    """Return the config file of that name: as given, in `configs/`, or among those that come with the package.

    Args:
        name: a path or a bare name, with or without `.yaml`.

    Raises:
        UsageError: if there is none; names the nearest.
    """
    folders = (Path(), Path("configs"), *BUNDLED_CONFIGS)
    for candidate in (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".yaml")):
        if candidate.is_file():
            return candidate
    known = sorted({path.stem for folder in folders for path in folder.glob("*_*.yaml")})
    raise UsageError(f"there is no config `{name}`. {suggest(Path(name).stem, known)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest of the known names, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    question = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{question}Known: {', '.join(known)}."
