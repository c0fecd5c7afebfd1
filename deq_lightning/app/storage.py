"""How checkpoints are written and read: whole, as plain data, and without trust in what they say of other files."""

import io
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from deq_lightning.app.checkpoints import names_files, read_checkpoint
from deq_lightning.app.runs import is_first
from deq_lightning.files import StorageError, not_written, replacing

BEST, FILES, SCORES = "best_model_path", "best_k_models", ("best_model_score", "current_score", "kth_value")


class LocalCheckpoints(CheckpointIO):
    """Writes each checkpoint whole or not at all, and reads checkpoints from this machine's disks as plain data.

    A checkpoint names other files, such as the best one, by their names alone, so that the folder of a run can be
    moved or copied. Whatever one says of files that are not in the folder is forgotten. Give it to a trainer as
    `Trainer(plugins=[LocalCheckpoints()])`; the command line does.

    Args:
        folders: those in which the files lie that a checkpoint names. By default the checkpoint's own.
    """

    def __init__(self, *folders: Path | str) -> None:
        self.folders = [Path(folder).resolve() for folder in folders]
        self._made: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; the file of that name stays whole until the new one is.

        Raises:
            StorageError: if it cannot be written.
        """
        del storage_options
        path = Path(path)
        if path.parent not in self._made:  # once: a folder that vanishes during a run takes the run's files along
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(not_written(error, path)) from error
            self._made.add(path.parent)
        buffer = io.BytesIO()  # PyTorch's own writer hides the reason why a file cannot be written
        torch.save(_by_name(checkpoint), buffer)
        with replacing(path) as file:
            file.write(buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint as plain data, whatever `weights_only` is."""
        del map_location, weights_only
        checkpoint = read_checkpoint(path)
        return _with_states(checkpoint, lambda state: _found(state, self.folders or [Path(path).parent.resolve()]))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint; never a folder."""
        if Path(path).is_file():
            Path(path).unlink()


def with_storage(plugins: Any, folders: Iterable[Path | str]) -> list[Any]:
    """Return a trainer's plugins, with `LocalCheckpoints` unless one of them writes checkpoints.

    Args:
        plugins: one, several or None.
        folders: of `LocalCheckpoints`.
    """
    own = list(plugins) if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]
    return own if any(isinstance(one, CheckpointIO) for one in own) else [*own, LocalCheckpoints(*folders)]


def carry(checkpoint: Mapping[str, Any], old: Path, new: Path) -> None:
    """Copy the files that a checkpoint names, such as the best one, into the folder in which its run goes on."""
    callbacks = checkpoint.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        paths = [state.get(BEST), *(state.get(FILES) or ())] if names_files(state) else []
        for name in {Path(path).name for path in paths if isinstance(path, str)}:
            if is_first() and (old / name).is_file() and not (new / name).exists():
                with (old / name).open("rb") as source, replacing(new / name) as file:
                    shutil.copyfileobj(source, file)


def _with_states(checkpoint: dict[str, Any], change: Any) -> dict[str, Any]:
    """Return the checkpoint with the states of callbacks that name files changed."""
    callbacks = checkpoint.get("callbacks")
    if not isinstance(callbacks, Mapping):
        return checkpoint
    states = {key: change(state) if names_files(state) else state for key, state in callbacks.items()}
    return {**checkpoint, "callbacks": states}


def _by_name(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the checkpoint with files named by their names alone."""

    def change(state: Mapping[str, Any]) -> dict[str, Any]:
        named = {key: Path(value).name if _is_path(key, value) else value for key, value in state.items()}
        if isinstance(state.get(FILES), Mapping):
            named[FILES] = {Path(path).name: score for path, score in state[FILES].items()}
        return named | {key: "" for key in ("dirpath",) if key in state}

    return _with_states(checkpoint, change)


def _found(state: Mapping[str, Any], folders: list[Path]) -> dict[str, Any]:
    """Return the state with the whole paths of the files that there are, and without the others."""

    def whole(name: Any) -> str:
        own = [folder / Path(str(name)).name for folder in folders]
        return next((str(path) for path in own if path.is_file() and path.resolve().parent in folders), "")

    kept = {key: whole(value) if _is_path(key, value) else value for key, value in state.items()}
    if isinstance(state.get(FILES), Mapping):
        kept[FILES] = {whole(path): score for path, score in state[FILES].items() if whole(path)}
    if "dirpath" in state:
        kept["dirpath"] = str(Path(kept.get(BEST) or folders[0] / "any").parent)
    if not kept.get(BEST) or not _is_sound(
        kept
    ):  # a score without its file would keep every later one from being saved
        nothing: dict[str, Any] = {
            BEST: "",
            FILES: {},
            "kth_best_model_path": "",
            "best_model_score": None,
            "current_score": None,
        }
        kept.update({key: empty for key, empty in nothing.items() if key in state})
    return kept


def _is_sound(state: Mapping[str, Any]) -> bool:
    """Say whether the scores are scores, and the worst of the files is one of them."""
    files, worst = state.get(FILES) or {}, state.get("kth_best_model_path")
    scores = [*files.values(), *(state[key] for key in SCORES if state.get(key) is not None)]
    return all(isinstance(score, torch.Tensor) and score.numel() == 1 for score in scores) and (
        not worst or worst in files
    )


def _is_path(key: Any, value: Any) -> bool:
    return isinstance(key, str) and key.endswith("path") and isinstance(value, str | Path)
