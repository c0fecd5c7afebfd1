"""The config that lies beside a checkpoint: found rather than typed, and so not trusted."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deq_lightning.app.checkpoints import read_checkpoint
from deq_lightning.app.messages import UsageError
from deq_lightning.app.runs import CONFIG, from_here, record_of, say
from deq_lightning.trust import foreign_names, is_bounded, unfolded

USED = {"model", "data", "gradient", "seed_everything"}  # what a checkpoint needs to be evaluated
CONTINUED = USED | {
    *(
        "trainer",
        "best_checkpoint",
        "last_checkpoint",
        "monitor",
        "guard",
        "predictions",
        "ema",
        "test_after_fit",
        "report",
    ),
}
FORGOTTEN = {"name", "run", "weights", "ckpt_path", "weights_only", "config", "trust_config"}
RUN = "{run}"  # as a folder: that of the run
FOLDERS = ("dirpath", "path", "dir", "root")  # how arguments end that name a place to write to


def with_own_config(args: Sequence[str]) -> list[str]:
    """Let `--ckpt_path X` without `--config` mean the config that X was trained with, which lies beside it.

    Whatever else is typed still wins, because it stands after the config. Only what is needed is taken from the config:
    of a run that is not continued, model, data, gradient and seed.

    Raises:
        UsageError: if there is no such checkpoint or no config beside it, or that names classes of others or files
            outside of its folder, and `--trust_config true` is not typed.
    """
    args = _newest_named(list(args))
    checkpoint = option(args, "--ckpt_path")
    if checkpoint in (None, "null") or any(arg.split("=")[0] in ("-c", "--config") for arg in args):
        return args
    read_checkpoint(checkpoint)
    path = Path(checkpoint).with_name(CONFIG)
    if not path.is_file():
        raise UsageError(
            f"`{checkpoint}` has no {CONFIG} beside it. Type the config it was trained with: `--config NAME`."
        )
    trusted = (option(args, "--trust_config") or "").lower() == "true"
    return [*args[:1], f"--config={found_config(path, args[0] == 'fit', trusted)}", *args[1:]]


def _newest_named(args: list[str]) -> list[str]:
    """Let `--ckpt_path last` and `best` mean those of the newest run, of the config that is typed if one is."""
    wanted = option(args, "--ckpt_path")
    if wanted not in ("last", "best") or Path(wanted).is_file():
        return args
    config, parent = option(args, "--config") or option(args, "-c"), option(args, "--trainer.default_root_dir")
    names = "*" if config is None else f"{Path(config).stem}*"
    numbered = re.compile(r".*" if config is None else rf"{re.escape(Path(config).stem)}(-\d+)?")
    folder = Path(parent or "checkpoints")
    found = [path for path in folder.glob(f"{names}/{wanted}.ckpt") if numbered.fullmatch(path.parent.name)]
    if not found:
        runs = "run" if config is None else f"run of `{Path(config).stem}`"
        raise UsageError(f"there is no {runs} with a `{wanted}.ckpt` in `{folder}`. Type `--ckpt_path PATH`.")
    newest = max(found, key=lambda path: path.stat().st_mtime)
    say(f"--ckpt_path {wanted}: {newest}")
    replaced = [f"--ckpt_path={newest}" if arg == f"--ckpt_path={wanted}" else arg for arg in args]
    return [
        str(newest) if (before, arg) == ("--ckpt_path", wanted) else arg
        for before, arg in zip([None, *replaced], replaced, strict=False)
    ]


def option(args: Sequence[str], name: str) -> str | None:
    """Return the value that is typed last for an option."""
    value = None
    for arg, following in zip(args, [*args[1:], None], strict=True):
        if arg == name:
            value = following
        elif arg.startswith(f"{name}="):
            value = arg.removeprefix(f"{name}=")
    return value


def command_for(subcommand: str, checkpoint: str | Path) -> str:
    """Return the command that does something with a checkpoint, and trusts its config where that takes trust."""
    folder = Path(checkpoint).parent
    trust = " --trust_config true" if any(foreign(_own_places(record_of(folder)), folder)) else ""
    return f"python -m deq_lightning {subcommand} --ckpt_path {shlex.quote(from_here(checkpoint))}{trust}"


def found_config(path: Path, continues: bool, trusted: bool = False) -> str:
    """Return what is used of a config that was found, as a text.

    Args:
        path: of the config.
        continues: whether the run goes on, rather than its checkpoint being evaluated.
        trusted: whether it may name classes and files of others.

    Raises:
        UsageError: if it may not and does, or is no config.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UsageError(f"`{path}` cannot be read as a config. Type one: `--config NAME`.") from error
    if not isinstance(config, dict) or not is_bounded(config):
        raise UsageError(f"`{path}` must hold the settings of a run. Type a config: `--config NAME`.")
    if not trusted:
        try:
            config = _own_places(unfolded(config))
        except ValueError as error:
            raise UsageError(f"`{path}` was found, not typed, and {error}. Type a config: `--config NAME`.") from error
        for reason in foreign(config, path.parent):
            raise UsageError(
                f"`{path}` was found beside the checkpoint, not typed, and {reason}. If you trust it, type "
                "`--trust_config true`, or the config yourself: `--config PATH`."
            )
    used = CONTINUED if continues else USED
    return yaml.safe_dump({key: value for key, value in config.items() if key in used}, sort_keys=False)


def foreign(config: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield what of a config would run code of others, write outside of the folder, or is no setting of a run.

    Args:
        config: of a run.
        folder: of the run.
    """
    for key, value in config.items():
        if key not in CONTINUED | FORGOTTEN:
            yield f"its `{key}` is no setting of a run"
        elif isinstance(value, str) and key not in FORGOTTEN:
            yield f"its `{key}` must be a section, and is {value!r}"
    for key, name in foreign_names({key: config[key] for key in config.keys() & CONTINUED}):
        yield f"names {name} as `{key.removesuffix('.class_path')}`, which is not of this program"
    for section in config.keys() & CONTINUED - USED:
        for key, place in _places(config[section], section, folder.resolve()):
            yield f"writes outside of its folder: `{key}` is {place}"


def _own_places(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config without what is of another machine or day: where new runs go, and whether to download."""
    return {section: _without(FOREIGN.get(section), settings) for section, settings in config.items()}


FOREIGN = {"trainer": "default_root_dir", "data": "download"}


def _without(name: str | None, settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {key: _without(name, value) for key, value in settings.items() if str(key).rsplit(".", 1)[-1] != name}


def _places(settings: Any, key: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield settings that name a place outside of the folder."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from _places(value, f"{key}.{name}", folder)
    elif isinstance(settings, list):
        for value in settings:
            yield from _places(value, key, folder)
    elif isinstance(settings, str) and settings and _leads_out(settings, key, folder):
        yield key, settings


def _leads_out(text: str, key: str, folder: Path) -> bool:
    if text == RUN:
        return False
    name = key.rsplit(".", 1)[-1]
    if name.endswith(FOLDERS) and name != "class_path":
        return not Path(text).expanduser().resolve().is_relative_to(folder)
    parts = text.replace(os.sep, "/").split("/")
    return text.startswith(("/", "~")) or os.pardir in parts or "://" in text
