"""What the command line adds to its parser: configs found by name, and errors of a line or two."""

import difflib
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from jsonargparse import ActionConfigFile
from pytorch_lightning.cli import LightningArgumentParser

PACKAGE = Path(__file__).parent
# As given, then the user's own, then those that come with the package: in a wheel, in a checkout.
CONFIG_FOLDERS = (Path(), Path("configs"), PACKAGE / "configs", PACKAGE.parent / "configs")


class UsageError(Exception):
    """Something the user typed cannot be done; the message says what must hold, what came and what to type."""


class Parser(LightningArgumentParser):
    """Reports an error as a line or two on standard error and exits with status 2.

    `JSONARGPARSE_DEBUG=true` in the environment raises the error instead, with its traceback.
    """

    families: ClassVar[dict[str, list[type]]] = {}  # key of a class on the command line, and the classes it may name

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Parse, and take for null what jsonargparse makes of one that is typed for a class within a class."""
        if not self.exit_on_error and args:  # of such a class, whose arguments are formatted from values
            args = ([re.sub("=None$", "=null", argument) for argument in args[0]], *args[1:])
        return super().parse_args(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message without the usage, which has hundreds of lines."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        print(f"error: {in_brief(message, self.families)}", file=sys.stderr)
        raise SystemExit(2)


def in_brief(message: str, families: Mapping[str, Sequence[type]]) -> str:
    """Say what jsonargparse says in nested paragraphs in one line, with the nearest known name.

    Args:
        message: the error, each level of which names a key or a class, and the last of which says what is wrong.
        families: key of a class on the command line, and the classes it may name.
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    flag = f"`--{'.'.join(keys)}`"
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        known = [one.__name__ for one in families.get(".".join(keys).rsplit(".", 1)[-1], ())]
        return f"{flag}: there is no class `{found[1]}`. {suggest(found[1], known)}"
    if found := re.search(r"Option '([^']+)' is not accepted|Key '([^']+)' is not expected", message):
        owner = re.findall(r"given class_path '([^']+)'", message)[-1:]
        argument = found[1] or found[2]
        return f"{flag}: there is no argument `{argument}`. {suggest(argument, _arguments(owner, families))}"
    if found := re.search(r"arguments are required: (.*)|Key \"(.*)\" is required", message):
        return f"missing: {found[1] or found[2]}. Type `--config NAME`. {suggest('', known_configs())}"
    reasons = [line.strip().removeprefix("- ") for line in message.splitlines()]
    reasons = [reason for reason in reasons if reason and not reason.startswith(NOISE)]
    prefix = f"{flag}: " if keys else ""
    return prefix + "; ".join(reasons) if reasons else message


NOISE = (
    "Parser key",
    "Problem with given class_path",
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value type:",
    "Given value: Namespace(",
    "Given value: NestedArg(",
)


def _arguments(owner: Sequence[str], families: Mapping[str, Sequence[type]]) -> list[str]:
    """Return the constructor's arguments of the class with that path."""
    for one in (one for family in families.values() for one in family):
        if owner and one.__name__ == owner[0].rsplit(".", 1)[-1]:
            return list(inspect.signature(one).parameters)
    return []


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
    for candidate in (folder / f"{name}{suffix}" for folder in CONFIG_FOLDERS for suffix in ("", ".yaml")):
        if candidate.is_file():
            return candidate
    raise UsageError(f"there is no config `{name}`. {suggest(Path(name).stem, known_configs())}")


def known_configs() -> list[str]:
    """Return the bare names of the configs in reach."""
    return sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*_*.yaml")})


def suggest(name: str, known: Sequence[str]) -> str:
    """Return a sentence with the nearest of the known names, and all of them."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    question = f"Did you mean {' or '.join(near)}? " if near else ""
    return question + (f"Known: {', '.join(known)}." if known else "")
