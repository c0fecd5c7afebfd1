"""Configs found by name."""

import re
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from deq_lightning.app.messages import UsageError, suggest
from deq_lightning.app.names import load_named

PACKAGE = Path(__file__).parent.parent
# As given, then the user's own, then those that come with the package: in a wheel, in a checkout.
CONFIG_FOLDERS = (Path(), Path("configs"), PACKAGE / "configs", PACKAGE.parent / "configs")


class ConfigByName(ActionConfigFile):
    """Takes a path or the bare name of a config."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Load the config found, or the text of one."""
        if "\n" in values:
            super().__call__(parser, cfg, values, option_string)
            return
        try:
            found = find_config(values)
        except UsageError as error:
            parser.error(str(error), error)
        text = found.read_text()
        load_named([text])
        renamed = re.sub(r"(?m)^run:", "name:", text)  # as a run's name was called, in what version 0.1.0 has saved
        super().__call__(parser, cfg, str(found) if renamed == text else renamed, option_string)
        cfg[self.dest][-1] = str(found)  # a new run is named after it


def find_config(name: str) -> Path:
    """Return the config file of that name: as given, in `configs/`, or among those that come with the package.

    Args:
        name: a path or a bare name, with or without `.yaml`.

    Raises:
        UsageError: if there is none; names the nearest.
    """
    for candidate in (folder / f"{name}{suffix}" for folder in CONFIG_FOLDERS for suffix in ("", ".yaml")):
        if candidate.is_file():
            return candidate
    raise UsageError(f"there is no config `{name}`. {suggest(Path(name).stem, known_configs())}")


def known_configs() -> list[str]:
    """Return the bare names of the configs in reach."""
    return sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*_*.yaml")})
