"""The command: its options, its runs, and its folder."""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from deq_lightning.app.compare.axes import Setting, settings_of
from deq_lightning.app.compare.processes import add_sharing, helpers, once, part_of
from deq_lightning.app.compare.shared import Main, check_flags, fit_or_fail, keep_base, place_of
from deq_lightning.app.compare.table import FAILED, report
from deq_lightning.app.messages import Options

BASE = "comparison.json"  # the settings that all runs share


def compare(args: Sequence[str], main: Main) -> Any:
    """Fit and test every combination of some settings, and show what they come to.

    The same command again goes on where it was interrupted, within a run from its last checkpoint; so does another
    process that shares the folder, with other runs.

    Args:
        args: what is typed after `compare`.
        main: runs the command line.

    Returns:
        The command line object of the settings that all runs share, built and not run.

    Raises:
        UsageError: if the options are wrong, or the folder holds runs of other settings.
    """
    options, rest = _parser().parse_known_args(args)
    settings = settings_of(options.over)
    own = part_of(settings, options)
    cli = main(rest, run=False)  # so that whatever is wrong is said before the first run
    check_flags(settings, rest, main)
    parent, name = place_of(cli, options.name, "compared")
    folder = parent / name
    keep_base(folder / BASE, cli)
    last = f"{cli.config.last_checkpoint.filename}.ckpt"

    def fit(setting: Setting) -> None:
        if error := fit_or_fail(setting, rest, parent, name, last, main):
            (folder / FAILED).mkdir(exist_ok=True)
            (folder / FAILED / setting.name).write_text(error)

    with helpers("compare", args, options.jobs, folder):
        for setting in own:
            if not (folder / FAILED / setting.name).is_file():
                once(setting, folder, partial(fit, setting))
    report(folder, settings)
    return cli


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="deq_lightning compare",
        description="Fit and test every combination of settings, and show what they come to. The same command again "
        "goes on where it was interrupted.",
        epilog="Everything else is as for `fit`: `--config digits_upg --over gradient=UPG,JFB --over "
        "seed_everything=0..4`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        required=True,
        metavar="FLAG=VALUES",
        help="What to vary: a flag of `fit` and its values, a,b,c or 0..4. Several are combined, all with all; of "
        "'FLAG=a,b;FLAG=c,d' the first values go together, and the second.",
    )
    parser.add_argument("--name", help="Name of the folder. By default that of the config with `_compared` after it.")
    add_sharing(parser)
    return parser
