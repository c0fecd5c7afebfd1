"""Checkpoints: read as plain data, checked against the model."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from torch import nn

from deq_lightning.app.messages import UsageError
from deq_lightning.data import DataError
from deq_lightning.tasks import loading


def read_plain(path: str | Path) -> Any:
    """Load a file that PyTorch has saved as plain data; nothing in it is ever executed.

    Raises:
        UsageError: if the file is missing, truncated, of another kind, or holds more than plain data.
    """
    path = Path(path)
    if not path.is_file():
        others = ", ".join(f"`{other}`" for other in sorted(path.parent.glob("*.ckpt")))
        raise UsageError(
            f"there is no checkpoint `{path}`. " + (f"There is {others}." if others else "Check the path.")
        )
    try:
        return loading.read_plain(path)
    except ValueError as error:
        raise UsageError(str(error)) from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint as plain data; nothing in the file is ever executed.

    Raises:
        UsageError: if the file is missing, truncated, not a checkpoint, or holds more than plain data.
    """
    checkpoint = read_plain(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UsageError(f"`{path}` is not a checkpoint of this program: it has no `state_dict`.")
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(value, torch.Tensor) or not isinstance(name, str):
            raise UsageError(f"`{path}` is damaged: `{name}` must be a tensor, got {value!r:.40}. Use another one.")
    for file in _files(checkpoint):
        if "://" in file or ".." in Path(file).parts:
            raise UsageError(
                f"`{path}` names {file!r:.200} as a checkpoint of its run, which no run of this program writes; it may "
                f"have been tampered with. Use another one, or start a new run from its weights: `--weights {path}`."
            )
    return checkpoint


def names_files(state: Any) -> bool:
    """Say whether the state of a callback names files."""
    return isinstance(state, Mapping) and any(key.endswith("path") for key in state if isinstance(key, str))


def _files(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that a checkpoint names."""
    callbacks = checkpoint.get("callbacks")
    for state in filter(names_files, callbacks.values() if isinstance(callbacks, Mapping) else ()):
        several = state.get("best_k_models")
        named = (value for key, value in state.items() if str(key).endswith("path"))
        yield from (str(file) for file in (*named, *(several if isinstance(several, Mapping) else ())))


@contextmanager
def restoring(path: str | Path | None) -> Iterator[None]:
    """Report whatever Lightning meets while it restores a damaged checkpoint in a line.

    Raises:
        UsageError: in place of what was raised.
    """
    try:
        yield
    except DataError:  # the checkpoint is whole, and the data are not those that it was trained with
        raise
    except Exception as error:
        frames = traceback.walk_tb(error.__traceback__)
        if path is None or not any(frame.f_code in RESTORE for frame, _ in frames):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"`{path}` is damaged: its state cannot be restored ({type(error).__name__}: {reason:.200}). Use another "
            f"one of that run, or start a new run from its weights: `--weights {path}`."
        ) from error


RESTORE = {
    function.__code__
    for name, function in vars(_CheckpointConnector).items()
    if name.lstrip("_").startswith("restore_")
}


def check_fits(module: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Make sure that a checkpoint belongs to this model.

    Raises:
        UsageError: if names or shapes differ.
    """
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    saved = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
    differences = {
        "are missing in it": sorted(own.keys() - saved.keys()),
        "are unknown to the model": sorted(saved.keys() - own.keys()),
        "have another shape": sorted(name for name in own.keys() & saved.keys() if own[name] != saved[name]),
    }
    found = [f"{len(names)} tensors {what} (`{names[0]}`, ...)" for what, names in differences.items() if names]
    if found:
        raise UsageError(
            f"`{path}` is a checkpoint of another model: {'; '.join(found)}.\n"
            "Leave `--config` out to use the config that lies beside the checkpoint."
        )


def read_state(path: str | Path) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a checkpoint, or of a bare `state_dict` that was saved elsewhere.

    Raises:
        UsageError: if the file is neither.
    """
    found = read_plain(path)
    if isinstance(found, Mapping) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
        return found
    return read_checkpoint(path)["state_dict"]


def _as_named(saved: Mapping[str, torch.Tensor], own: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """Return the tensors by the module's names: those of its network alone, or of a wrapper, have another prefix."""

    def renamed(prefix: str, by: str) -> dict[str, torch.Tensor]:
        return {by + name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}

    candidates = [saved, *(renamed(*pair) for pair in PREFIXES)]
    return max(candidates, key=lambda one: sum(own[name].shape == one[name].shape for name in own.keys() & one.keys()))


PREFIXES = [
    ("", "net."),
    ("module.", ""),
    ("module.", "net."),
    ("model.", ""),
    ("model.", "net."),
    ("_orig_mod.", "net."),
]


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Give the module the tensors of a checkpoint that have the name and shape of its own, and say which it has not.

    Raises:
        UsageError: if the file is not a checkpoint, or no tensor fits.
    """
    own = module.state_dict()
    saved = _as_named(read_state(path), own)
    fitting = {name: saved[name] for name, tensor in own.items() if name in saved and saved[name].shape == tensor.shape}
    if not fitting:
        raise UsageError(f"no tensor of `{path}` has the name and shape of one of this model.")
    module.load_state_dict({**own, **fitting})
    fresh = sorted({".".join(name.split(".")[:2]) for name in own.keys() - fitting.keys()})
    rest = f"; fresh are tensors of {', '.join(f'`{part}`' for part in fresh)}" if fresh else ""
    return f"{len(fitting)} of {len(own)} tensors from {path}{rest}"
