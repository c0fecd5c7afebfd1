"""The command line on arguments that begin with a subcommand, and the ways in which it ends."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from deq_lightning.app.cli import DEQCLI
from deq_lightning.app.compare.command import compare
from deq_lightning.app.cross_validate import cross_validate
from deq_lightning.app.found import with_own_config
from deq_lightning.app.messages import UsageError
from deq_lightning.app.names import load_named
from deq_lightning.app.predicting import check_inputs
from deq_lightning.app.report.command import report
from deq_lightning.app.runs import say
from deq_lightning.app.search.command import search
from deq_lightning.app.stops import interruptible
from deq_lightning.app.translation import with_flags
from deq_lightning.callbacks import DivergenceError
from deq_lightning.configured import CombinationError, RunError
from deq_lightning.data import DataError
from deq_lightning.data.errors import printable
from deq_lightning.files import not_written

OF_RUNS = {"cross_validate": cross_validate, "compare": compare, "search": search}  # which fit again and again

# Warnings about Lightning's own doings, which the user cannot change.
QUIET = (
    "LightningCLI's args parameter",  # they are the shell's own, completed
    "Checkpoint directory .* exists and is not empty",  # the run's config is there
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning 2.6 with torch 2.15
    ".*does not have many workers.*",  # for tensors in memory they only cost time
    "Couldn't infer the batch indices",  # of samples, which a text has none of
    "You have overridden `on_after_batch_transfer`",  # the task's is the only one
    "The dirpath has changed from",  # the best checkpoint has been carried along
)


@interruptible
def command(args: Sequence[str], run: bool = True) -> Any:
    """Run the command line, or build what the arguments say; see `main`."""
    return execute(args, run)


def execute(args: Sequence[str], run: bool = True) -> Any:
    """Run the command line without handling interruptions; the commands of many runs call it for each of them."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    try:
        if run and args[0] == "report":
            return report(args[1:])
        args = [re.sub("^--run(?=$|=)", "--name", arg) for arg in args]  # as it was called in version 0.1.0
        load_named(_texts(args))
        check_inputs(args)
        if run and args[0] in OF_RUNS:
            return OF_RUNS[args[0]](args[1:], execute)
        return DEQCLI(with_own_config(args) if run else args, run)
    except (UsageError, CombinationError, DataError, MisconfigurationException) as error:
        raise _ended(with_flags(error), 2) from error
    except DivergenceError as error:
        raise _ended(with_flags(error), 1, say) from error
    except RunError as error:
        raise _ended(with_flags(error), 1) from error  # on any process: it need not be the first one's
    except OSError as error:
        raise _ended(not_written(error), 1) from error
    except RuntimeError as error:
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise _ended(f"`EarlyStopping`: {error}.", 2) from error


def _ended(reason: str, status: int, tell: Callable[..., None] = print) -> SystemExit:
    """Say why the program ends, and return what ends it."""
    tell("error: " + "\n".join(map(printable, reason.splitlines())), file=sys.stderr)
    return SystemExit(status)


def _texts(args: Sequence[str]) -> Iterator[str]:
    """Yield what is typed, and what the files hold that are named there."""
    for arg in args:
        yield arg
        path = Path(arg.split("=", 1)[-1])
        if "\n" not in arg and path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            yield path.read_text()
