"""`python -m deq_lightning cross_validate`: a comparison whose only axis is the fold, and what they come to."""

import argparse
import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from deq_lightning.app.checkpoints import read_checkpoint
from deq_lightning.app.compare.axes import Setting
from deq_lightning.app.compare.processes import add_sharing, helpers, once, part_of
from deq_lightning.app.compare.shared import Main, difference, place, place_of
from deq_lightning.app.messages import Options, UsageError
from deq_lightning.app.report.reading import RESULTS as OF_A_RUN
from deq_lightning.app.runs import is_first, say
from deq_lightning.files import replacing

RESULTS = "cross_validation.json"
OWN_PROTOCOL = "each fold's epoch is selected by a validation part of the other folds"


def cross_validate(args: Sequence[str], main: Main) -> Any:
    """Fit and test a fresh model for every fold of the data, and write down each result as soon as it is there.

    The same settings again go on where they were interrupted, within a fold from its last checkpoint; so does another
    process that shares the folder, with other folds.

    Args:
        args: what is typed after `cross_validate`.
        main: runs the command line.

    Returns:
        The command line object of the arguments, built and not run.

    Raises:
        UsageError: if the data has no folds, nothing would select an epoch, or the folder holds the results of other
            settings.
    """
    options, rest = _parser().parse_known_args(args)
    cli = main(rest, run=False)  # so that whatever is wrong is said before the first fold
    data = cli.datamodule
    if getattr(data, "folds", None) is None:
        raise UsageError(f"`cross_validate` needs data that comes in folds, `TUGraphs`, got `{type(data).__name__}`.")
    _check_selection(cli)
    data.validate_on_test |= options.select_on_test == "true"
    data.prepare_data()
    data.setup("fit")

    parent, name = place_of(cli, options.name, "folds_selected_on_test" if data.validate_on_test else "folds")
    rest += ["--data.validate_on_test", str(data.validate_on_test).lower(), "--test_after_fit", "true"]
    folder = parent / name
    results = _results_so_far(folder / RESULTS, cli)
    folds = {str(fold): Setting((("data.fold", str(fold)),), f"fold-{fold}") for fold in range(data.folds)}
    own = part_of(list(folds), options)
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)

    def fit(fold: str) -> None:
        begin = place(parent, f"{name}/{folds[fold].name}", f"{cli.config.last_checkpoint.filename}.ckpt")
        _keep(results, fold, main(["fit", *rest, *folds[fold].flags, *begin]).folder)
        _write(folder / RESULTS, results)

    try:
        with helpers("cross_validate", args, options.jobs, folder):
            for fold in own:
                if fold not in results["folds"]:
                    once(folds[fold], folder, partial(fit, fold))
    finally:
        _tidy(folder)
    for fold, setting in folds.items():  # those that other processes have done
        if fold not in results["folds"] and (folder / setting.name / OF_A_RUN).is_file():
            _keep(results, fold, folder / setting.name)
    if results["folds"]:
        _write(folder / RESULTS, results)
        say(_table(results))
    if left := [setting.name for fold, setting in folds.items() if fold not in results["folds"]]:
        say(f"not there yet: {', '.join(left)}")
    say(f"results: {folder / RESULTS}")
    return cli


def _tidy(folder: Path) -> None:
    """Delete folders into which nothing has come."""
    for path in (folder / "claims", folder):
        with suppress(OSError):  # there is something in it
            path.rmdir()


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="deq_lightning cross_validate",
        description="Fit and test a fresh model for every fold of the data. The same command again goes on where it "
        "was interrupted.",
        epilog="Everything else is as for `fit`: `--config proteins_upg --data.folds 5 --gradient JFB`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--select_on_test",
        nargs="?",
        choices=["true", "false"],
        const="true",
        default="false",
        help="Select each fold's epoch by its test accuracy, after training on all other folds, as published results "
        "were (`--data.validate_on_test true`); not for results of your own.",
    )
    parser.add_argument("--name", help="Name of the folder. By default that of the config with `_folds` after it.")
    add_sharing(parser)
    return parser


def _check_selection(cli: Any) -> None:
    """Make sure that every fold ends with a checkpoint that was selected."""
    monitor = str(cli.config_init.best_checkpoint.monitor)
    if not monitor.startswith("val_"):
        raise UsageError(
            f"`best_checkpoint.monitor` must be a figure of the validation, such as val_acc, got {monitor}."
        )
    trainer = cli.config.trainer
    for key, prevents in {
        "enable_checkpointing": trainer.enable_checkpointing is False,
        "fast_dev_run": bool(trainer.fast_dev_run),
    }.items():
        if prevents:
            raise UsageError(
                f"`cross_validate` tests the best checkpoint of each fold, and with `--trainer.{key} "
                f"{str(trainer[key]).lower()}` there is none. Leave that out."
            )


def _results_so_far(path: Path, cli: Any) -> dict[str, Any]:
    """Return the results of the finished folds, with their settings."""
    protocol = f"not comparable: {'; '.join(cli.departures)}" if cli.departures else OWN_PROTOCOL
    new = {"protocol": protocol, "settings": json.loads(cli.parser.dump(cli.config, format="json")), "folds": {}}
    if not path.is_file():
        return new
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        theirs = {"protocol": found["protocol"], **found["settings"]}
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"`{path}` is damaged. Move it away, or type `--name NAME` for new folds.") from error
    if different := difference(theirs, {"protocol": protocol, **new["settings"]}):
        raise UsageError(
            f"`{path.parent}` holds the folds of other settings: {different}. Type `--name NAME` for new ones."
        )
    return found


def _average(results: dict[str, Any]) -> None:
    """Put the means and standard deviations beside the folds."""
    folds = list(results["folds"].values())
    for figure in folds[0]["test"]:
        values = [fold["test"][figure] for fold in folds]
        # Of the folds themselves, divided by their number, as NumPy does and most published deviations.
        results[figure] = {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}


@rank_zero_only
def _write(path: Path, results: dict[str, Any]) -> None:
    """Write the results, all or nothing."""
    with replacing(path, "w") as file:
        file.write(json.dumps(results, indent=2) + "\n")


def _keep(results: dict[str, Any], fold: str, folder: Path) -> None:
    """Put what the run of a fold has come to beside the other folds, in their order, with the new averages."""
    found = json.loads((folder / OF_A_RUN).read_text())
    if found["best"] is None:
        raise UsageError("a fold ended without a validation, and nothing selected its epoch. Train for longer.")
    results["folds"][fold] = {
        "monitor": found["monitor"],
        "val": found["best"],
        "test": found["test"],
        "epoch": read_checkpoint(str(folder / found["checkpoint"]))["epoch"],
        "seconds": found["seconds"],
    }
    results["folds"] = dict(sorted(results["folds"].items(), key=lambda item: int(item[0])))
    _average(results)


def _table(results: dict[str, Any]) -> str:
    """Return the results as text."""
    folds = results["folds"]
    first = next(iter(folds.values()))
    names = [first["monitor"], *first["test"]]
    widths = [max(8, len(name)) for name in names]
    heads = [f"{name:>{width}}" for name, width in zip(names, widths, strict=True)]
    lines = [results["protocol"], "  ".join(["fold", *heads, "epoch", "seconds"])]
    for number, fold in folds.items():
        values = [fold["val"], *fold["test"].values()]
        cells = [f"{value:{width}.4g}" for value, width in zip(values, widths, strict=True)]
        lines.append("  ".join([f"{number:>4}", *cells, f"{fold['epoch']:5}", f"{fold['seconds']:7.1f}"]))
    for name in first["test"]:
        lines.append(f"{name} {results[name]['mean']:.4g} ± {results[name]['std']:.4g} over {len(folds)} folds")
    return "\n".join(lines)
