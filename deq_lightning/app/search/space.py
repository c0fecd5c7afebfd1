"""What a search may choose."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deq_lightning.app.compare.axes import values_of
from deq_lightning.app.messages import UsageError

WHOLE = r"-?\d+"
NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True)
class Dimension:
    """A flag, and the values it may get.

    Attributes:
        key: the flag without its dashes.
        values: if it is one of some.
        low: smallest number otherwise.
        high: largest.
        whole: whether it is a whole number.
        log: whether it is drawn by its logarithm.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    def choose(self, trial: Any) -> str:
        """Return the value that a trial of Optuna gives it."""
        if self.values:
            return str(trial.suggest_categorical(self.key, self.values))
        if self.whole:
            return self.shown(trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log))
        return self.shown(trial.suggest_float(self.key, self.low, self.high, log=self.log))

    def shown(self, value: Any) -> str:
        """Return a value as it is typed."""
        return value if self.values else str(int(value)) if self.whole else repr(float(value))

    def end(self, last: bool) -> str:
        """Return the first or the last value, as it is typed."""
        if self.values:
            return self.values[-1 if last else 0]
        return self.shown(self.high if last else self.low)


def dimensions(texts: Sequence[str]) -> list[Dimension]:
    """Return what was typed after each `--space`: `flag=1..8`, `flag=0.1..0.9`, `flag=log:1e-4..1e-1` or `flag=a,b`.

    Raises:
        UsageError: if one is none of these.
    """
    found = [_dimension(text) for text in texts]
    for one in found:
        if sum(other.key == one.key for other in found) > 1:
            raise UsageError(f"`--space` must have each flag once, got `{one.key}` twice. Leave one out.")
    return found


def _dimension(text: str) -> Dimension:
    key, _, typed = text.partition("=")
    key = key.strip().removeprefix("--")
    if not re.fullmatch(r"[\w.]+", key) or not typed:
        raise UsageError(f"`--space` must be a flag with its range, such as gradient.k=1..8, got {text or 'nothing'}.")
    span = re.fullmatch(rf"(log:)?({NUMBER})\.\.({NUMBER})", typed)
    if span is None:
        values = values_of("space", key, typed)
        if typed.startswith("log:") or ".." in typed:
            raise UsageError(
                f"`--space {key}` must be two numbers with .. between, such as log:1e-4..1e-1, got {typed}."
            )
        return Dimension(key, tuple(values))
    whole = all(re.fullmatch(WHOLE, end) for end in span.groups()[1:])
    low, high = float(span[2]), float(span[3])
    if not low < high:
        raise UsageError(f"`--space {key}` must end above its begin, got {typed}.")
    if span[1] and low <= 0:
        raise UsageError(f"`--space {key}` must begin above 0 to be drawn by its logarithm, got {typed}.")
    return Dimension(key, (), low, high, whole, bool(span[1]))
