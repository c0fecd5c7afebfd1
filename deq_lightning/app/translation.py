"""Errors of jsonargparse in a line."""

import inspect
import re
import shlex
from collections.abc import Mapping, Sequence

from jsonargparse import Namespace

from deq_lightning.app.configs import known_configs
from deq_lightning.app.messages import UsageError, suggest
from deq_lightning.data import DataError


def in_brief(message: str, families: Mapping[str, Sequence[type]], flags: Sequence[str] = ()) -> str:
    """Say what jsonargparse says in nested paragraphs in one line, with the nearest known name.

    Args:
        message: the error; each level names a key or a class, and the last one says what is wrong.
        families: key of a class on the command line, and the classes it may name.
        flags: the first parts of those that there are.
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    flag = f"`--{'.'.join(keys)}`"
    if number := re.search(r"Expected a <class '(int|float)'>.*?(?:Got|Given) value: (\S+?)\.?(?:\s|$)", message, re.S):
        return f"{flag}: must be {NUMBERS[number[1]]}, got {number[2]}."
    if literal := re.search(r"Expected a typing\.Literal\[(.*?)\]\. (?:Got|Given) value: (.+)", message):
        known = [part.strip(QUOTES) for part in literal[1].split(", ")]
        return f"{flag}: must be {' or '.join(known)}, got {literal[2]}."
    if listed := re.search(r"Expected a <class '(?:[\w.]*\.)?(?:Sequence|[Ll]ist|tuple)'>\. Got value: (.+)", message):
        return f"{flag}: must be a list, got {listed[1]}. Type `[{listed[1]}]`."
    found = re.search(r"Expected a dot import path string: (\S+)", message)
    if found and "Expected a <class 'float'>" in message:
        return f"{flag}: must be a number (float), got {found[1]}."
    if found:
        known = [one.__name__ for one in families.get(".".join(keys).rsplit(".", 1)[-1], ())]
        return f"{flag}: there is no class `{found[1]}`. {suggest(found[1], known)}"
    if found := re.search(r"Option '([^']+)' is not accepted|Key '([^']+)' is not expected", message):
        owner = re.findall(r"given class_path '([^']+)'", message)[-1:]
        argument = found[1] or found[2]
        return f"{flag}: there is no argument `{argument}`. {suggest(argument, _arguments(owner, families))}"
    if found := re.search(r"(?i)unrecognized arguments: --?([\w.]+)", message):
        return f"there is no `--{found[1]}`. {suggest(found[1].split('.')[0], flags)}"
    if found := re.search(r"arguments are required: (.*)|Key \"(.*)\" is required", message):
        return _missing(found[1] or found[2], keys, families)
    reasons = [line.strip().removeprefix("- ") for line in message.splitlines()]
    reasons = [reason for reason in reasons if reason and not reason.startswith(NOISE)]
    prefix = f"{flag}: " if keys else ""
    return prefix + "; ".join(reasons) if reasons else message


NUMBERS = {"int": "a whole number (int)", "float": "a number (float)"}


def _missing(name: str, keys: Sequence[str], families: Mapping[str, Sequence[type]]) -> str:
    """Say what to type for an argument that is required.

    Args:
        name: of the argument.
        keys: that lead to the class that requires it.
        families: key of a class on the command line, and the classes it may name.
    """
    if name == "net":
        known = suggest("", [one.__name__ for one in families["net"]])
        return f"missing: `--model.net`. Type `--model.net NAME`. {known}"
    subcommand = re.match(r"(\w+)\.", name)
    if subcommand and subcommand[1] != "fit" and not keys:
        return f"missing: what `{subcommand[1]}` is for. Type `--ckpt_path PATH`, a checkpoint that `fit` has written."
    if keys:
        flag = ".".join((*keys, name))
        return f"missing: `--{flag}`, which has no default. Type it."
    return f"missing: {name}. Type `--config NAME`. {suggest('', known_configs())}"


def with_flag(message: str, config: Namespace) -> str:
    """Put before a constructor's refusal of an argument the flag of it: several classes have arguments of that name.

    Args:
        message: the refusal, "`max_steps` must be 1 or more, got 0."
        config: with all settings.
    """
    refused = re.match(r"`(\w+)` must be .*?\bgot (.+?)\.(?: |$)", message)
    if refused is None:
        return message
    keys = [key for key, value in config.items() if key.rsplit(".", 1)[-1] == refused[1] and str(value) == refused[2]]
    flags = " or ".join(f"`--{key.replace('.init_args', '')}`" for key in keys)
    return f"{flags}: {message}" if flags else message


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


PARTS = {  # what the library calls them, and the keys of the command line
    "task": "model",
    "net": "model.net",
    "optimizer": "model.optimizer",
    "lr_scheduler": "model.lr_scheduler",
    "solver": "model.net.solver",
    "data": "data",
    "gradient": "gradient",
    "trainer": "trainer",
    "weights": "weights",
}
QUOTES = "'\""
CONSTANTS = {"True": "true", "False": "false", "None": "null"}


def with_flags(error: str | Exception) -> str:
    """Turn the arguments that an error of the library names, such as `net.in_channels=1`, into flags.

    Another argument, `root=PATH` or `images.root=PATH`, is the data module's where the error is a `DataError`. A
    `UsageError` is of the command line and stays as it is.
    """
    if isinstance(error, UsageError):
        return str(error)
    part = "data" if isinstance(error, DataError) else None

    def flag(found: re.Match[str]) -> str:
        head, dot, name = found[1].partition(".")
        if head in PARTS and (dot or (found[2] and head != "task")):  # `task=` alone is an argument of tables
            return f"`{_flags(PARTS[head] + dot + name, found[2])}`"
        if part and found[2]:
            return f"`{_flags(f'{part}.{found[1]}', found[2])}`"
        return found[0]

    message = re.sub(r"`([\w.]+)(?:=([^`]+))?`", flag, str(error))
    return re.sub(
        r"\b([Ss])et ((?:\w+ ){0,2}`--)", lambda found: f"{'T' if found[1] == 'S' else 't'}ype {found[2]}", message
    )


def _flags(key: str, value: str | None) -> str:
    """Return what sets a key: one flag, or of a class with arguments, `UPG(k=5)`, several."""
    if value is None:
        return f"--{key}"
    if called := re.fullmatch(r"(\w+)\((.*)\)", value):
        arguments = re.findall(r"(\w+)=([^,()]+)", called[2])
        return " ".join([f"--{key} {called[1]}", *(_flags(f"{key}.{name}", own) for name, own in arguments)])
    return f"--{key} {CONSTANTS.get(value) or shlex.quote(value.strip(QUOTES))}"
