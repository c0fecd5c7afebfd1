"""Fit task and network to the data: fill in what was not typed, refuse what cannot fit."""

import json
import math
import os
import pydoc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from deq_lightning.app.messages import UsageError
from deq_lightning.app.names import families
from deq_lightning.app.translation import in_brief, with_flag, with_flags
from deq_lightning.configured import CombinationError, RunError, described
from deq_lightning.data import DataError
from deq_lightning.estimators.modes import evaluating, solving
from deq_lightning.operators import Operator
from deq_lightning.samples import OF_ROWS, WITH_ONE_ANSWER, Samples
from deq_lightning.tasks import ImplicitTask

ONE_EVALUATION = {"max_steps": 1, "eval_max_steps": None}
DATA = ("data.init_args", "data.init_args.images.init_args")
PLACES = {"model.net": "model.init_args.net.init_args", "model": "model.init_args"}  # by the flags that lead there


def fill_sizes(config: Namespace, typed: Namespace, samples: Samples, data: str) -> list[str]:
    """Give task and network the sizes of the data, where they have an argument for one that was not typed.

    Args:
        config: of the subcommand, with every default; changed.
        typed: what of it was typed or read from a config.
        samples: of the data.
        data: name of the data module.

    Returns:
        The flags that would have filled in the same.

    Raises:
        UsageError: if what was typed does not fit.
    """
    filled = []
    for flag, place in PLACES.items():
        own, theirs = config.get(place), typed.get(place) or {}
        if own is None:
            continue
        given = {name: value for name, value in vars(own).items() if theirs.get(name) is not None}
        for misfit in samples.misfits(given, data):
            name = misfit.split("`")[1]
            raise UsageError(f"{misfit}. Type `--{flag}.{name} {samples.arguments()[name]:.7g}`, or leave it out.")
        for name, value in samples.arguments().items():
            if name in own and name not in given:
                own[name] = value
                filled.append(f"--{flag}.{name}={value}")
        if "operator" in own and samples.operator is not None:
            filled.append(_fill_operator(own, theirs, samples.operator, data, f"--{flag}.operator"))
    return filled


def _fill_operator(own: Namespace, typed: Any, operator: Operator, data: str, flag: str) -> str:
    """Give a network the operator of the data; return the flag that does the same."""
    settings = described(operator)
    if typed.get("operator") is not None and (given := own.operator.as_dict()) != settings:
        raise UsageError(f"`operator` of the network must be {settings} for `{data}`, got {given}. Leave it out.")
    own["operator"] = Namespace({**settings, "init_args": Namespace(settings["init_args"])})
    return f"{flag}={json.dumps(settings)}"


def follow_seed(config: Namespace, typed: Namespace) -> None:
    """Let the splits and the order of the data follow the seed of the run where that was typed and theirs was not.

    Args:
        config: of the subcommand, with every default; changed.
        typed: what of it was typed or read from a config.
    """
    seed = config.get("seed_everything")
    for place in DATA:
        own = config.get(place)
        given = typed.get("seed_everything") is not None and typed.get(f"{place}.seed") is None
        if given and own is not None and "seed" in own and isinstance(seed, int) and not isinstance(seed, bool):
            own["seed"] = seed


def callbacks_of(trainer: Namespace) -> list[Namespace]:
    """Return the settings of the callbacks that were typed: none, one or several."""
    typed = trainer.get("callbacks") or []
    return [typed] if isinstance(typed, Namespace) else typed


def check_trainer(trainer: Namespace) -> None:
    """Refuse what Lightning's Trainer takes and then trains nothing with, or something else.

    Raises:
        UsageError: if there is such a setting.
    """
    if any(str(one.class_path).endswith("LearningRateFinder") for one in callbacks_of(trainer)):
        raise UsageError(
            "`LearningRateFinder` needs a model with an attribute `lr`; here the optimizer has it. Type "
            "`--model.optimizer.lr` with values of your own in its place."
        )
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer.get(name) == 0:
            raise UsageError(f"`--trainer.{name}` must not be 0: nothing would be trained. Leave it out.")
    for name, least in LEAST.items():
        value = trainer.get(name)
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise UsageError(f"`--trainer.{name}` must be {least} or more, got {value}. Leave it out for the default.")
    if trainer.get("val_check_interval") == 0:
        raise UsageError(
            "`--trainer.val_check_interval` must be above 0, got 0. Leave it out for one at an epoch's end."
        )
    devices = str(trainer.get("devices"))
    if not re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)*,?|\[\d+(, ?\d+)*\]", devices):
        raise UsageError(f"`--trainer.devices` must be a number of devices, a list of them or auto, got {devices}.")
    on_cpu = trainer.get("accelerator") == "cpu" or not torch.accelerator.is_available()
    if on_cpu and devices.isdigit() and int(devices) > (cores := os.cpu_count() or 1):
        raise UsageError(f"`--trainer.devices` must be {cores} or less, the cores of this machine, got {devices}.")


LEAST = {
    "gradient_clip_val": 0,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
}


@contextmanager
def refusals(config: Namespace) -> Iterator[None]:
    """Say what a constructor refuses in a line, with the flag of the argument.

    Args:
        config: the settings that it is built from.
    """
    try:
        yield
    except DataError:
        raise  # of data that is read to see what it is
    except (ValueError, MisconfigurationException) as error:
        message = with_flag(in_brief(with_flags(error), families()), config)
        raise UsageError(message) from error
    except RuntimeError as error:
        if "more than one stateful callback" not in str(error):
            raise
        raise UsageError("a gradient strategy goes under `--gradient`, not among `--trainer.callbacks`.") from error


def class_of(config: Namespace) -> type[ImplicitTask]:
    """Return the class that a config names."""
    found = pydoc.locate(config.class_path)
    assert isinstance(found, type)
    return found


def check_task(task: ImplicitTask | type[ImplicitTask], samples: Samples, data: str) -> None:
    """Make sure that the task takes the samples.

    Raises:
        UsageError: if it does not; names those that do.
        CombinationError: if it does with other arguments.
    """
    if not task.takes or samples.kind in task.takes:
        return
    own: Any = task if isinstance(task, type) else type(task)
    if samples.kind in own.takes:  # with other arguments
        raise CombinationError(f"`{own.__name__}` takes {samples.kind}, as `{data}` has, {own.takes_others}.")
    tasks: list[Any] = families()["model"]
    others = [one for one in tasks if samples.kind in one.takes]
    # The plainest of them: those that derive from it add something that nobody has asked for.
    others = [one.__name__ for one in others if not any(issubclass(one, other) for other in others if other is not one)]
    advice = f" Type `--model {others[0]}`, or another `--data`." if others else " Type another `--data`."
    raise UsageError(f"`{own.__name__}` takes {' or '.join(task.takes)}, and `{data}` has {samples.kind}.{advice}")


def try_out(task: ImplicitTask, samples: Samples, data: str) -> None:
    """Show the network samples of zeros before anything of the run begins.

    Raises:
        UsageError: if the network cannot take it, or answers with too few classes.
    """
    example, net = samples.example(), type(task.net).__name__
    if example is None or (example.dim() != 4 and samples.kind not in OF_ROWS):
        return
    example = example.to(next(task.net.parameters()).dtype)
    one, several = ("a row", "rows") if samples.kind in OF_ROWS else ("an image", "images")
    shape = f"{several} of {tuple(example.shape[1:])}"
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluating(task), solving(task, **ONE_EVALUATION):
            output = task.net(example)[0]
    except RunError:
        return  # the run says that better
    except Exception as error:  # whatever a network raises on what it is not made for
        reason = (str(error).splitlines() or [type(error).__name__])[0].strip(" .")
        raise UsageError(f"`{net}` cannot take {shape} of `{data}`: {reason}. Type another `--model.net`.") from error
    wanted = samples.arguments().get("num_classes", 1)
    if samples.kind in WITH_ONE_ANSWER and (output.dim() != 2 or output.shape[1] < wanted):
        got = f"an answer of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"`{net}` must answer {one} of `{data}` with {wanted} logits or more, got {got}.")
