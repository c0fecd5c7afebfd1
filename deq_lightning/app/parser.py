"""The parser of the command line."""

import os
import re
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from deq_lightning.app.names import families
from deq_lightning.app.translation import in_brief
from deq_lightning.configured import old_names


class Parser(LightningArgumentParser):
    """Reports an error as a line or two on standard error and exits with status 2.

    `JSONARGPARSE_DEBUG=true` in the environment raises the error instead, with its traceback.
    """

    renamed: Mapping[str, str] = MappingProxyType({})

    def add_class_arguments(self, class_type: type, nested_key: str | None = None, *args: Any, **options: Any) -> Any:
        """Add the arguments of a class; the parser of one class alone also takes their old names."""
        if nested_key is None:
            self.renamed = old_names(class_type)
        return super().add_class_arguments(class_type, nested_key, *args, **options)

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Parse, and take for null what jsonargparse makes of one that is typed for a class within a class."""
        if not self.exit_on_error and args:  # of such a class, whose arguments are formatted from values
            args = ([self._renamed_flag(re.sub("=None$", "=null", argument)) for argument in args[0]], *args[1:])
        return super().parse_args(*args, **options)

    def parse_object(self, obj: Any, *args: Any, **options: Any) -> Any:
        """Parse what a config says of a class."""
        names = self.renamed
        if names and isinstance(obj, Namespace | dict):
            values = vars(obj) if isinstance(obj, Namespace) else obj
            obj = type(obj)(**{names.get(name, name): value for name, value in values.items()})
        return super().parse_object(obj, *args, **options)

    def _renamed_flag(self, argument: str) -> str:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        return f"--{self.renamed.get(name, name)}{equals}{value}" if flag.startswith("--") else argument

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message without the usage, which has hundreds of lines."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        flags = {action.dest.split(".")[0] for action in self._actions}
        print(f"error: {in_brief(message, families(), sorted(flags))}", file=sys.stderr)
        raise SystemExit(2)


def build(parser: LightningArgumentParser, config: Namespace) -> Namespace:
    """Instantiate what a config describes."""
    # The old name is deprecated from jsonargparse 4.49 on, and before that there is no new one.
    return getattr(parser, "instantiate", parser.instantiate_classes)(config)
