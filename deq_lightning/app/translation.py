"""Errors of jsonargparse in a line."""

import inspect
import re
from collections.abc import Mapping, Sequence

from deq_lightning.app.configs import known_configs
from deq_lightning.app.messages import suggest


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


PARTS = {"task": "model", "net": "model.net", "optimizer": "model.optimizer", "solver": "model.net.solver"}


def with_flags(message: str) -> str:
    """Turn the arguments that a message of the library names, `net.in_channels=1`, into flags."""

    def flag(found: re.Match[str]) -> str:
        part, dot, name = found[1].partition(".")
        value = {"True": "true", "False": "false", "None": "null"}.get(found[2], found[2].removesuffix("()"))
        return f"`--{PARTS.get(part, part)}{dot}{name} {value}`"

    return re.sub(rf"`((?:{'|'.join(PARTS)}|data|gradient|trainer)(?:\.\w+)*)=([^`]+)`", flag, message)
