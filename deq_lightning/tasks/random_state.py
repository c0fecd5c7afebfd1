"""The random state in checkpoints."""

import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from deq_lightning.configured import RunError

State = Mapping[str, Any]


class RandomState(Callback):
    """Saves the random state in every checkpoint, so that a resumed run draws what the uninterrupted one would have.

    It is that of PyTorch on the CPU and the device in use, of Python and of NumPy, of every process.
    """

    def __init__(self) -> None:
        self._saved: Any = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the states of the processes, in their order."""
        checkpoint["rng_state"] = of_every_process(trainer, _state(pl_module.device))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the states until training starts."""
        del trainer, pl_module
        self._saved = checkpoint.get("rng_state")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore this process's state, once.

        Raises:
            RunError: if what was saved is no random state.
        """
        saved, self._saved = self._saved, None
        if saved is None:
            return
        states = [saved] if isinstance(saved, Mapping) else saved  # as once saved, by the first process alone
        _check(states, pl_module.device)  # all of them, so that all processes find the same
        if len(states) == trainer.world_size:
            _restore(states[trainer.global_rank], pl_module.device)
        else:
            rank_zero_warn(
                f"the checkpoint has the random state of {len(states)} process(es), and this run has "
                f"{trainer.world_size}: its random draws are not those of the uninterrupted run."
            )


def of_every_process(trainer: pl.Trainer, own: Any) -> list[Any]:
    """Return what every process has, in their order; of an interrupted run that of this process alone."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized() and trainer.world_size > 1
    if not several or trainer.interrupted:  # the others may never come to this one's last save
        return [own]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, own)
    return states


def _state(device: torch.device) -> dict[str, Any]:
    """Return the state of this process, as plain data."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    state = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _restore(state: State, device: torch.device, trial: bool = False) -> None:
    """Draw from that state on; as a trial, set generators that nobody draws from."""
    if "cpu" in state:
        (torch.Generator() if trial else torch.default_generator).set_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        used = torch.Generator(device) if trial else torch.cuda.default_generators[device.index or 0]
        used.set_state(state["cuda"].cpu())
    if "python" in state:
        version, keys, following = state["python"]
        following = following if following is None else float(following)
        (random.Random() if trial else random).setstate((version, tuple(keys), following))
    if "numpy" in state:
        name, keys, position, *rest = state["numpy"]
        if not 0 <= position <= len(keys):
            raise ValueError("NumPy would read beyond its keys")
        (np.random.RandomState() if trial else np.random).set_state((name, keys.numpy(), position, *rest))


def _check(states: Any, device: torch.device) -> None:
    """Make sure that these are random states."""
    try:
        for state in states:
            if not isinstance(state, Mapping):
                raise TypeError(type(state).__name__)
            _restore(state, device, trial=True)
    except Exception as error:  # whatever a generator raises on what is not its state
        raise RunError(
            "`rng_state` of the checkpoint must be the random states of its processes, got something else. "
            "Use another checkpoint of the run."
        ) from error
