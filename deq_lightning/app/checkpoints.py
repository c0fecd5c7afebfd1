"""Checkpoints: read as plain data, checked against the model."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deq_lightning.app.messages import UsageError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint as plain data; nothing in the file is ever executed.

    Raises:
        UsageError: if the file is missing, truncated, not a checkpoint, or holds more than plain data.
    """
    path = Path(path)
    if not path.is_file():
        others = ", ".join(f"`{other}`" for other in sorted(path.parent.glob("*.ckpt")))
        raise UsageError(
            f"there is no checkpoint `{path}`. " + (f"There is {others}." if others else "Check the path.")
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not path.read_bytes().startswith(b"PK"):
            raise UsageError(
                f"`{path}` is not a checkpoint. Type the path of a .ckpt file written by `fit`."
            ) from error
        raise UsageError(
            f"`{path}` holds more than tensors and plain data (a pickled object or call), and was not loaded: "
            "that could execute code. Use a checkpoint written by `fit`."
        ) from error
    except Exception as error:  # whatever reading a damaged archive may raise
        raise UsageError(f"`{path}` is damaged or not a checkpoint. Use another one of that run.") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UsageError(f"`{path}` is not a checkpoint of this program: it has no `state_dict`.")
    return checkpoint


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


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Give the module the tensors of a checkpoint that have the name and shape of its own, and say which it has not.

    Raises:
        UsageError: if the file is not a checkpoint, or no tensor fits.
    """
    saved, own = read_checkpoint(path)["state_dict"], module.state_dict()
    fitting = {name: saved[name] for name, tensor in own.items() if name in saved and saved[name].shape == tensor.shape}
    if not fitting:
        raise UsageError(f"no tensor of `{path}` has the name and shape of one of this model.")
    module.load_state_dict({**own, **fitting})
    fresh = sorted({".".join(name.split(".")[:2]) for name in own.keys() - fitting.keys()})
    rest = f"; fresh are tensors of {', '.join(f'`{part}`' for part in fresh)}" if fresh else ""
    return f"{len(fitting)} of {len(own)} tensors from {path}{rest}"
