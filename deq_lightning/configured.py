"""Objects that are nothing but their constructor's arguments, and what such arguments must hold."""

import inspect


class Configured:
    """Prints as the call that makes it, so that a log line says what really runs; what is None is left out."""

    def __repr__(self) -> str:
        values = {name: getattr(self, name, None) for name in inspect.signature(type(self)).parameters}
        arguments = (f"{name}={value!r}" for name, value in values.items() if value is not None)
        return f"{type(self).__name__}({', '.join(arguments)})"


class CombinationError(ValueError):
    """Two choices that are each valid exclude each other; the message says which, and what to type instead."""


class RunError(RuntimeError):
    """A run cannot go on; the message says what was seen and what to change."""


def check_at_least(minimum: float, advice: str = "", **values: float) -> None:
    """Raise a ValueError that names the first of `values` below `minimum`, or not a number, and gives the advice."""
    for name, value in values.items():
        if not value >= minimum:
            raise ValueError(f"`{name}` must be {minimum} or more, got {value}. {advice}".strip())


def check_damping(damping: float) -> None:
    """Raise a ValueError unless `damping` is a part of a step."""
    if not 0 < damping <= 1:
        raise ValueError(f"`damping` must be in (0, 1], got {damping}. 1 takes whole steps.")
