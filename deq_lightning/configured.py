"""Objects defined by their constructor's arguments, and checks of such arguments."""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from operator import ge, gt, le, lt
from typing import Any, TypeVar

T = TypeVar("T")


class Configured:
    """Prints as the call that makes it, without arguments that are None, so that a log line says what really runs."""

    def __repr__(self) -> str:
        values = {name: getattr(self, name, None) for name in inspect.signature(type(self)).parameters}
        arguments = (f"{name}={value!r}" for name, value in values.items() if value is not None)
        return f"{type(self).__name__}({', '.join(arguments)})"


class CombinationError(ValueError):
    """Two choices that are each valid exclude each other; the message says which, and what to type instead."""


class RunError(RuntimeError):
    """A run cannot go on; the message says what was seen and what to change."""


def renamed(**names: str) -> Callable[[type[T]], type[T]]:
    """Accept old names for the arguments of a class's constructor: `@renamed(old="new")`.

    Python calls are translated here; the command-line parser reads `old_names` and translates flags and configs.
    """

    def decorate(cls: type[T]) -> type[T]:
        init = cls.__init__

        @wraps(init)
        def take_old_names(self: T, *args: Any, **arguments: Any) -> None:
            if twice := [old for old, new in names.items() if {old, new} <= arguments.keys()]:
                raise ValueError(f"`{twice[0]}` is the old name of `{names[twice[0]]}`. Leave it out.")
            init(self, *args, **{names.get(name, name): value for name, value in arguments.items()})

        setattr(cls, "__init__", take_old_names)  # noqa: B010  # type checkers refuse to assign a method
        setattr(cls, OLD_NAMES, names)
        return cls

    return decorate


def old_names(cls: type) -> Mapping[str, str]:
    """Map the old names of the constructor's arguments to the new ones."""
    own = inspect.signature(cls).parameters  # a subclass may use such a name for something else
    return {old: new for old, new in getattr(cls, OLD_NAMES, {}).items() if old not in own}


OLD_NAMES = "_old_names"
LEAVE_OUT = "Leave it out for the default."
NO_DAMPING = "1 means no damping."
MOST_COUNTED = 2**31 - 1  # steps and the like: what is beyond never ends
MOST_IN_MEMORY = 10**7  # channels, classes, words: a weight that has two such sizes is far beyond any memory


def at_least(minimum: float, advice: str = "", **values: Any) -> None:
    """Raise a ValueError that names the first of `values` that is not a finite number of `minimum` or more.

    Every entry of a list or a tuple is checked, here, in `above` and in `within`. NaN and infinities always fail, and
    so do True and False, which Python takes for numbers.
    """
    _check(lambda value: value >= minimum, f"{minimum} or more", advice, values)


def above(bound: float, advice: str = "", **values: Any) -> None:
    """Raise a ValueError that names the first of `values` that is not a finite number above `bound`."""
    _check(lambda value: value > bound, f"above {bound}", advice, values)


def within(interval: str, advice: str = "", **values: Any) -> None:
    """Raise a ValueError that names the first of `values` that is not a number in an interval like "(0, 1]"."""
    low, high = map(float, interval[1:-1].split(","))
    over, under = gt if interval[0] == "(" else ge, lt if interval[-1] == ")" else le
    _check(lambda value: over(value, low) and under(value, high), f"in {interval}", advice, values)


def whole(minimum: int, advice: str = "", most: int = MOST_COUNTED, **values: Any) -> None:
    """Raise a ValueError that names the first of `values` that is not one whole number from `minimum` to `most`."""
    for name, value in values.items():
        if not is_whole(value):
            raise ValueError(f"`{name}` must be a whole number, got {value!r}.")
        _check_whole(minimum, most, advice, name, value)


def sizes(minimum: int = 1, advice: str = "", **values: Any) -> None:
    """Raise a ValueError that names the first of `values` that is not a whole number of things to hold in memory."""
    whole(minimum, advice, MOST_IN_MEMORY, **values)


def several_sizes(minimum: int = 1, fewest: int = 1, **values: Any) -> None:
    """Raise a ValueError that names the first of `values` that is not a list of such numbers, `fewest` or more."""
    listed(fewest, **values)
    for name, value in values.items():
        if not all(map(is_whole, value)):
            raise ValueError(f"`{name}` must be a list of whole numbers, got {_shown(value)}.")
        _check_whole(minimum, MOST_IN_MEMORY, "", name, value)


def listed(fewest: int = 1, **values: Any) -> None:
    """Raise a ValueError that names the first of `values` that is not a list of `fewest` entries or more."""
    for name, value in values.items():
        if not isinstance(value, list | tuple):
            raise ValueError(f"`{name}` must be a list, got {value!r}.")
        if len(value) < fewest:
            raise ValueError(f"`{name}` must have one entry or more, got {list(value)}.")


def is_number(value: Any) -> bool:
    """Say whether `value` is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and -math.inf < float(value) < math.inf


def is_whole(value: Any) -> bool:
    """Say whether `value` is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def one_of(known: Iterable[Any], advice: str = "", **values: Any) -> None:
    """Raise a ValueError that names the first of `values` that is not in `known`."""
    known = list(known)
    for name, value in values.items():
        if value not in known:
            names = ", ".join(map(str, known))
            raise ValueError(f"`{name}` must be one of {names}; got {value!r}. {advice}".strip())


def ascending(**values: Sequence[float]) -> None:
    """Raise a ValueError that names the first of `values` whose entries are not ascending."""
    for name, value in values.items():
        if list(value) != sorted(value):
            raise ValueError(f"`{name}` must be ascending, got {list(value)}. Swap its entries.")


def _check(holds: Callable[[Any], bool], wanted: str, advice: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        entries = _entries(value)
        for entry in entries:
            if isinstance(entry, bool) or not isinstance(entry, Real):
                raise ValueError(f"`{name}` must be a number, got {value!r}.")
        if not all(map(holds, entries)):
            raise ValueError(f"`{name}` must be {wanted}, got {_shown(value)}. {advice}".strip())
        if not all(map(is_number, entries)):
            raise ValueError(f"`{name}` must be finite, got {_shown(value)}. {advice}".strip())


def _check_whole(minimum: int, most: int, advice: str, name: str, value: Any) -> None:
    at_least(minimum, advice, **{name: value})
    _check(lambda entry: entry <= most, f"{most} or less", "", {name: value})


def _entries(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def described(value: Any) -> Any:
    """Return the plain data, with class paths, of which the command line makes an object that equals `value`.

    Raises:
        ValueError: if there is none.
    """
    if value is None or isinstance(value, str | bool) or is_whole(value) or isinstance(value, float):
        return value
    if isinstance(value, list | tuple):
        return [described(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(name): described(entry) for name, entry in value.items()}
    arguments = getattr(value, "made_with", None)
    if isinstance(value, Configured):
        arguments = {name: getattr(value, name) for name in inspect.signature(type(value)).parameters}
    if not isinstance(arguments, Mapping) or "<" in type(value).__qualname__:
        raise ValueError(f"a `{type(value).__name__}` is not made of plain data.")
    return {"class_path": class_path(type(value)), "init_args": described(arguments)}


def class_path(cls: type) -> str:
    """Return the name by which a class is imported: the public one if there is one, so that files may move."""
    public = cls.__module__.partition(".")[0]
    known = getattr(sys.modules.get(public), "__all__", ())
    return f"{public if cls.__name__ in known else cls.__module__}.{cls.__qualname__}"


def given_arguments(made: Any) -> dict[str, Any] | None:
    """Return what the constructor that leads to this call was given, as plain data, or None if it is not plain.

    Args:
        made: the object; every frame from its class's constructor to this call must be one of its constructors.
    """
    frame, outer = inspect.currentframe(), None
    frame = frame.f_back if frame else None
    while frame is not None and frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is made:
        frame, outer = frame.f_back, frame
    if outer is None or outer.f_code is not getattr(inspect.unwrap(type(made).__init__), "__code__", None):
        return None
    names, _, keywords, values = inspect.getargvalues(outer)
    given = {name: values[name] for name in names if name != "self"} | (values[keywords] if keywords else {})
    try:
        return described(given)
    except ValueError:
        return None
