"""The parser of the command line."""

import os
import re
import sys
from typing import Any, NoReturn

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from deq_lightning.app.names import families
from deq_lightning.app.translation import in_brief


class Parser(LightningArgumentParser):
    """Reports an error as a line or two on standard error and exits with status 2.

    `JSONARGPARSE_DEBUG=true` in the environment raises the error instead, with its traceback.
    """

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Parse, and take for null what jsonargparse makes of one that is typed for a class within a class."""
        if not self.exit_on_error and args:  # of such a class, whose arguments are formatted from values
            args = ([re.sub("=None$", "=null", argument) for argument in args[0]], *args[1:])
        return super().parse_args(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message without the usage, which has hundreds of lines."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        print(f"error: {in_brief(message, families())}", file=sys.stderr)
        raise SystemExit(2)


def build(parser: LightningArgumentParser, config: Namespace) -> Namespace:
    """Instantiate what a config describes."""
    # The old name is deprecated from jsonargparse 4.49 on, and before that there is no new one.
    return getattr(parser, "instantiate", parser.instantiate_classes)(config)
