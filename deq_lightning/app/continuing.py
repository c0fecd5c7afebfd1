"""A run that goes on: what its checkpoint must hold, and what of the settings it decides."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from deq_lightning.app.fitting import callbacks_of
from deq_lightning.app.messages import UsageError
from deq_lightning.tasks import ImplicitTask

PARTS = ("optimizer", "lr_scheduler")
LOOPS = {"fit_loop", "validate_loop", "test_loop", "predict_loop"}
SPLITS = ("seed", "train_size", "val_size", "test_size", "folds", "fold")


def check_continues(checkpoint: Mapping[str, Any], path: str) -> None:
    """Make sure that a run can go on with a checkpoint.

    Raises:
        UsageError: if it has no state of the training, or a damaged one.
    """
    anew = f"Start a new run from its weights: `--weights {path}`."
    if "optimizer_states" not in checkpoint:
        raise UsageError(f"`{path}` holds weights and no state of the training, and cannot be continued. {anew}")
    kinds: dict[str, type] = {"optimizer_states": list, "lr_schedulers": list, "loops": Mapping, "callbacks": Mapping}
    kinds |= {"global_step": int, "epoch": int}
    sound = all(isinstance(checkpoint.get(key), kind) for key, kind in kinds.items()) and _group(checkpoint)
    if not sound or not LOOPS <= checkpoint["loops"].keys():
        raise UsageError(f"the state of the training in `{path}` is damaged. {anew}")


def check_optimizer(task: ImplicitTask, checkpoint: Mapping[str, Any], path: str) -> None:
    """Make sure that the state of the optimizer is one of this optimizer.

    Raises:
        UsageError: if it is not.
    """
    parameters = [nn.Parameter(torch.empty_like(one)) for one in task.parameters()]
    optimizer = task.make_optimizer(parameters)
    try:
        optimizer.load_state_dict(deepcopy(checkpoint["optimizer_states"][0]))
        missing = sorted(optimizer.defaults.keys() - optimizer.param_groups[0].keys())
        if missing:
            raise ValueError(f"it has no `{missing[0]}`")
    except Exception as error:  # whatever another optimizer's state, or a damaged one, may raise
        raise UsageError(
            f"`{path}` does not hold the state of a `{type(optimizer).__name__}` for this model. Leave "
            "`--model.optimizer` out to go on with that of the run, or start a new run from its weights: "
            f"`--weights {path}`."
        ) from error


def go_on_with(
    config: Namespace, typed: Namespace, checkpoint: Mapping[str, Any], record: Mapping[str, Any]
) -> list[str]:
    """Set what the checkpoint decides, so that the settings say what runs, and say in a line what that overrules.

    Args:
        config: of the run; changed.
        typed: what of it was typed or read from a config.
        checkpoint: with which the run goes on.
        record: the run's own config, as it was saved; empty if it is unknown.

    Returns:
        A line for each setting that was typed in vain.

    Raises:
        UsageError: if a class is typed that cannot take the checkpoint's state.
    """
    model = config.model.init_args
    group, schedule = _group(checkpoint), _schedule(checkpoint)
    rate = group.get("initial_lr", None if schedule else group.get("lr"))  # the one before the schedule, if it is known
    states = {"optimizer": group | {"lr": rate}, "lr_scheduler": schedule}
    lines = []
    for part in PARTS:
        own, theirs = model.get(part), (_arguments(record, "model").get(part) or {})
        _check_class(own, theirs, part)
        given = typed.get(f"model.init_args.{part}.init_args")
        if own is not None and given is not None:
            lines += list(_overrule(own.init_args, vars(given), states[part], f"--model.{part}"))
    for callback in callbacks_of(config.trainer):
        name = str(callback.class_path).rsplit(".", 1)[-1]
        state = next((state for key, state in checkpoint["callbacks"].items() if str(key).startswith(name)), None)
        if isinstance(state, Mapping) and callback.get("init_args"):
            arguments = callback.init_args
            lines += list(_overrule(arguments, dict(vars(arguments)), state, f"--trainer.callbacks.{name}"))
    seed = record.get("seed_everything")
    if isinstance(seed, int) and seed != config.seed_everything:
        lines.append(_line(f"--seed_everything {config.seed_everything}", seed))
        config.seed_everything = seed
    return lines


def other_splits(config: Namespace, record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what makes the splits other ones than those that a checkpoint was trained with."""
    theirs = _arguments(record, "data")
    if (record.get("data") or {}).get("class_path") != config.data.class_path:
        return
    for name in SPLITS:
        own = config.data.get(f"init_args.{name}")
        if own is not None and theirs.get(name) is not None and own != theirs[name]:
            yield (
                f"with `--data.{name} {own}` in place of {theirs[name]} the splits are not those of the run, and what "
                "is tested may be what it was trained on"
            )


def _overrule(arguments: Namespace, given: Mapping[str, Any], state: Mapping[str, Any], flag: str) -> Iterator[str]:
    """Replace what was given by what is saved under the same name."""
    for name, value in given.items():
        saved = None if name == "last_epoch" else _plain(state.get(name))  # that one counts
        if saved is not None and value is not None and saved != _plain(value):
            yield _line(f"{flag}.{name} {value}", saved)
            arguments[name] = saved


def _line(typed: str, saved: Any) -> str:
    shown = f"{saved:.6g}" if isinstance(saved, float) else saved
    return f"`{typed}` has no effect: a run that goes on keeps {shown}. `--weights` starts a new one from its weights"


def _plain(value: Any) -> Any:
    """Return a number, a word or a list of such; None for anything else."""
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else None
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str) else None


def _check_class(own: Namespace | None, theirs: Any, part: str) -> None:
    """Make sure that the class is the one whose state is saved."""
    names = [str(one.get("class_path")).rsplit(".", 1)[-1] for one in (own or {}, theirs or {})]
    if isinstance(theirs, Mapping) and theirs and names[0] != names[1]:
        raise UsageError(
            f"`--model.{part}` of a run that goes on must be `{names[1]}`, got {'null' if own is None else names[0]}. "
            "Leave it out, or start a new run from its weights with `--weights`."
        )


def _arguments(record: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    found = record.get(section)
    arguments = found.get("init_args") if isinstance(found, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def _group(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the first group of parameters; empty if they are damaged."""
    try:
        return dict(checkpoint["optimizer_states"][0]["param_groups"][0])
    except (LookupError, TypeError, ValueError):
        return {}


def _schedule(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    states = checkpoint["lr_schedulers"]
    return states[0] if states and isinstance(states[0], Mapping) else {}
