"""The task of any checkpoint, without naming its class."""

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from deq_lightning.gradients import GradientStrategy
from deq_lightning.tasks.base import ImplicitTask
from deq_lightning.tasks.hparams import INSTANTIATOR, RECIPE, made_of
from deq_lightning.tasks.new_inputs import TrainedOn
from deq_lightning.trust import foreign_names, only_plain, unfolded


def load(path: str | Path, trust_config: bool = False, **options: Any) -> Any:
    """Return the task of a checkpoint in evaluation mode, with the gradient strategy that it was trained with.

    Nothing in the file is executed.

    Args:
        path: a file that the command line or a trainer has written.
        trust_config: whether the file, or the `config.yaml` beside it, may name classes of others, which are imported.
        options: as for `ImplicitTask.load_from_checkpoint`: `map_location` (default: the CPU), and arguments of the
            task that win over the saved ones.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, is no checkpoint of a task, does not say how its network is made, or names
            a class that is not of this program or the libraries it is made for.
    """
    checkpoint = read_plain(path)
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        raise ValueError(f"`{path}` is not a checkpoint of a task: it has no `state_dict`.")
    parts = _parts(checkpoint, Path(path))
    trained_on = TrainedOn(parts.pop("data", None), checkpoint, trust_config)
    if not trust_config:
        for key, name in foreign_names(unfolded(parts)):
            raise ValueError(
                f"`{path}` names {name} as `{key}`, which is not of this program. If you trust it, call "
                "`deq_lightning.load(path, trust_config=True)`."
            )
    if "net" not in parts and "net" not in options:
        raise ValueError(
            f"`{path}` does not say how its network is made. Pass it: `deq_lightning.load(path, net=...)`, or, for a "
            "task without one in this file, `load_from_checkpoint` of its class."
        )
    cls = _located(parts.get("class_path"))
    own = {} if "net" in options else _instantiated(checkpoint, parts)
    options = {"map_location": "cpu", **own, **options}
    task = cls.load_from_checkpoint(path, trust_config=trust_config, **options)
    if parts.get("gradient"):
        _give_gradient(task, parts["gradient"], checkpoint)
    task.trained_on = trained_on
    return task.eval()


def read_plain(path: str | Path) -> Any:
    """Return what a file holds that PyTorch has saved as plain data; nothing in it is ever executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, of another kind, or holds more than plain data.
    """
    try:
        with only_plain():
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        if not Path(path).read_bytes().startswith(b"PK"):
            raise ValueError(
                f"`{path}` is not a checkpoint. Type the path of a .ckpt file written by `fit`."
            ) from error
        raise ValueError(
            f"`{path}` holds more than tensors and plain data (a pickled object or call), and was not loaded: "
            "that could execute code. Use a checkpoint written by `fit`."
        ) from error
    except Exception as error:  # whatever reading a damaged archive may raise
        raise ValueError(f"`{path}` is damaged or not a checkpoint. Use another one of that run.") from error


def _parts(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the class path of the task and what it is made of: as saved, as typed, or from the config of its run."""
    typed = checkpoint.get("hyper_parameters") or {}
    found = {"class_path": typed.get("_class_path"), "net": typed.get("net")}
    found = {key: value for key, value in {**found, **(checkpoint.get(RECIPE) or {})}.items() if value is not None}
    config = path.with_name("config.yaml")
    if not {"gradient", "data"} <= found.keys() and config.is_file():
        settings = yaml.safe_load(config.read_text())
        settings = settings if isinstance(settings, Mapping) else {}
        found = {key: settings.get(key) for key in ("gradient", "data")} | found
    return found


def _located(name: Any) -> type[ImplicitTask]:
    module, _, attribute = str(name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError):
        found = None
    if not (isinstance(found, type) and issubclass(found, ImplicitTask)):
        raise ValueError(f"the checkpoint must name its task, got {name!r}. Call `load_from_checkpoint` of its class.")
    return found


def _instantiated(checkpoint: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes Lightning build the network of a task that was made in Python."""
    if "_instantiator" in (checkpoint.get("hyper_parameters") or {}):
        return {}
    return {"net": parts["net"], "_class_path": parts["class_path"], "_instantiator": INSTANTIATOR}


def _give_gradient(task: ImplicitTask, settings: Any, checkpoint: Mapping[str, Any]) -> None:
    gradient = made_of(GradientStrategy, settings)
    state = (checkpoint.get("callbacks") or {}).get(gradient.state_key)
    if state:
        gradient.load_state_dict(state)
    for model in task.implicit_models():
        model.gradient = gradient
