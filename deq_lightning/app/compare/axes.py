"""What a comparison varies."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple

from deq_lightning.app.messages import UsageError

REPEATS = ("seed_everything", "data.seed", "data.fold")  # of which a table shows the mean
OPEN, CLOSED = "[{(", "]})"
LONGEST = 120  # characters of a folder's name
Pair = tuple[str, str]  # a flag without its dashes, and a value


class Setting(NamedTuple):
    """One combination.

    Attributes:
        pairs: flags and values.
        name: of its folder.
    """

    pairs: tuple[Pair, ...]
    name: str

    @property
    def flags(self) -> list[str]:
        """The arguments of the command line."""
        return [part for key, value in self.pairs for part in (f"--{key}", value)]

    @property
    def kind(self) -> tuple[Pair, ...]:
        """What repeats of it share."""
        return tuple(pair for pair in self.pairs if pair[0] not in REPEATS)

    @property
    def repeat(self) -> tuple[Pair, ...]:
        """Which repeat it is."""
        return tuple(pair for pair in self.pairs if pair[0] in REPEATS)


def settings_of(texts: Sequence[str]) -> list[Setting]:
    """Return all combinations of what was typed after each `--over`, in its order.

    Args:
        texts: each `flag=a,b,c` or `flag=0..4`; or several of these with `;` between, whose values go together.

    Raises:
        UsageError: if one is none of these.
    """
    axes = [_axis(text) for text in texts]
    keys = [key for axis in axes for key, _ in axis[0]]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"`--over` must vary each flag once, got `{key}` twice. Leave one out.")
    short = {key: _short(key, keys) for key in keys}
    return [_setting([pair for part in parts for pair in part], short) for parts in product(*axes)]


def _axis(text: str) -> list[tuple[Pair, ...]]:
    """Return the values that go together, one entry for each run."""
    columns = []
    for part in filter(None, text.split(";")):
        key, is_there, values = part.partition("=")
        key = key.strip().removeprefix("--")
        if not (is_there and re.fullmatch(r"[\w.]+", key)):
            raise UsageError(f"`--over` must be a flag with its values, such as gradient=UPG,NPG, got {text}.")
        columns.append([(key, value) for value in values_of("over", key, values)])
    if not columns:
        raise UsageError("`--over` must be a flag with its values, such as gradient=UPG,NPG, got nothing.")
    for one, other in pairwise(columns):
        if len(one) != len(other):
            raise UsageError(
                f"flags that go together must have as many values, got {len(one)} of `{one[0][0]}` and {len(other)} of "
                f"`{other[0][0]}`. Type another `--over` to combine all with all."
            )
    return list(zip(*columns, strict=True))


def values_of(option: str, key: str, text: str) -> list[str]:
    """Return the values in a text such as `a,b` or `0..4`.

    Args:
        option: after which it was typed.
        key: the flag that gets them.
        text: the values.

    Raises:
        UsageError: if there are none, or one comes twice.
    """
    if span := re.fullmatch(r"\s*(-?\d+)\.\.(-?\d+)\s*", text):
        values = [str(one) for one in range(int(span[1]), int(span[2]) + 1)]
    else:
        values = list(_parts(text))
    if not values:
        raise UsageError(f"`--{option} {key}` must have values, such as 0..4 or a,b, got {text or 'none'}.")
    for value in values:
        if not value or values.count(value) > 1:
            raise UsageError(f"`--{option} {key}` must have different values, got {text}.")
    return values


def _parts(text: str) -> Iterator[str]:
    """Yield what stands between commas that are in no brackets."""
    depth, begin = 0, 0
    for place, letter in enumerate(text):
        depth += (letter in OPEN) - (letter in CLOSED)
        if letter == "," and not depth:
            yield text[begin:place].strip()
            begin = place + 1
    if text.strip():
        yield text[begin:].strip()


def _short(key: str, keys: Sequence[str]) -> str:
    """Return the last part of a flag, or all of it where another one ends alike."""
    last = key.rpartition(".")[2]
    return last if sum(one.rpartition(".")[2] == last for one in keys) == 1 else key


def _setting(pairs: Sequence[Pair], short: dict[str, str]) -> Setting:
    name = ",".join(f"{short[key]}={value}" for key, value in pairs)
    name = re.sub(r"[^\w.,=+-]", "_", name)
    if len(name) > LONGEST:
        raise UsageError(
            f"flags and values must make {LONGEST} characters or fewer together, for the name of a folder, got "
            f"{len(name)}. Vary fewer, or put long values into configs."
        )
    return Setting(tuple(pairs), name)
