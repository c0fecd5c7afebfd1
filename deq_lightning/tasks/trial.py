"""A trial of optimizer and schedule before a run, because PyTorch takes numbers that fail or spoil a run only later."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from deq_lightning.configured import ascending, at_least, is_number, whole
from deq_lightning.tasks.schedules import ToEnd

Schedule = LRScheduler | ReduceLROnPlateau

FEW, MANY = 3, 1000  # steps of the trial, where the length of the run is not known, and at most
CHECKS: dict[str, Callable[..., None]] = {  # of arguments that PyTorch's schedules do not check
    "T_max": lambda **value: whole(1, **value),
    "step_size": lambda **value: whole(1, **value),
    "patience": lambda **value: whole(0, **value),
    "factor": lambda **value: at_least(0, **value),
    "gamma": lambda **value: at_least(0, **value),
    "milestones": lambda **value: ascending(**{name: list(steps) for name, steps in value.items()}),
}


def check_optimizer(make: Callable[[], Optimizer]) -> Optimizer:
    """Return the optimizer that `make` returns, and make sure that its numbers are finite.

    Raises:
        ValueError: if not, or if it cannot be made.
    """
    with _refused("optimizer"):
        optimizer = make()
    for group in optimizer.param_groups:
        _check_finite("optimizer", group)
    for rate in _rates(optimizer):  # 0 is for those who want to see a run in which nothing is learned
        at_least(0, "", **{"optimizer.lr": rate})
    return optimizer


def check_schedule(make: Callable[[Optimizer], Schedule], optimizer: Optimizer, steps: int | None) -> None:
    """Make sure that a schedule gives a usable learning rate in every step, by stepping it.

    Args:
        make: makes the schedule of an optimizer.
        optimizer: whose learning rates it changes; of no use afterwards.
        steps: optimizer steps of the run. None: not known.

    Raises:
        ValueError: if it does not, or if it cannot be made.
    """
    own = {name for group in optimizer.param_groups for name in (*group, "initial_lr")}
    with _refused("lr_scheduler"):
        schedule = make(optimizer)
    arguments = _arguments(schedule)
    for name, value in arguments.items():
        _check_finite("lr_scheduler", {name: value})
        if name in CHECKS:
            CHECKS[name](**{f"lr_scheduler.{name}": value})
    for group in optimizer.param_groups:  # where some keep their arguments
        _check_finite("lr_scheduler", {name: value for name, value in group.items() if name not in own})
    if not isinstance(schedule, ReduceLROnPlateau):  # that one is stepped with a figure of the validation
        _step(schedule, optimizer, steps, ", ".join(f"{name}={value}" for name, value in arguments.items()))


def _step(schedule: LRScheduler, optimizer: Optimizer, steps: int | None, given: str) -> None:
    name = type(schedule).__name__
    length = steps or FEW
    if isinstance(schedule, ToEnd):
        schedule.end_at(length)
    if isinstance(schedule, OneCycleLR):
        if steps is not None and schedule.total_steps < steps:
            raise ValueError(
                f"`lr_scheduler.total_steps` must be {steps} or more, the steps of the run, got {schedule.total_steps}."
            )
        length = min(length, schedule.total_steps)
    for step in range(min(length, MANY)):
        rates = _rates(optimizer)
        if not all(is_number(rate) and rate >= 0 for rate in rates):
            got = ", ".join(f"{rate:g}" for rate in rates)
            raise ValueError(f"`{name}` must give learning rates of 0 or more, got {got} at step {step} ({given}).")
        with warnings.catch_warnings(), _refused("lr_scheduler"):
            warnings.simplefilter("ignore")  # the optimizer is not stepped, because that could move parameters
            schedule.step()


@contextmanager
def _refused(argument: str) -> Iterator[None]:
    """Turn what classes raise that calculate with arguments they did not check."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"`{argument}` must have arguments that it can calculate with, got {reason}.") from error


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups if group.get("lr") is not None]


def _arguments(schedule: Schedule) -> dict[str, Any]:
    """Return those arguments of the constructors that the schedule keeps under the same name, as plain data."""
    names = {name for one in type(schedule).__mro__[:-1] for name in inspect.signature(one).parameters}
    kept = {name: getattr(schedule, name, None) for name in sorted(names - {"last_epoch"})}
    return {name: value for name, value in kept.items() if isinstance(value, Real | list | tuple | dict)}


def _check_finite(owner: str, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if name != "params" and not all(math.isfinite(number) for number in _numbers(value)):
            raise ValueError(f"`{owner}.{name}` must be finite, got {value}.")


def _numbers(value: Any) -> Iterator[Real]:
    """Yield the numbers in a value, if it is one or a list of some."""
    for entry in value if isinstance(value, list | tuple | dict) else [value]:
        if isinstance(entry, Real):
            yield entry
