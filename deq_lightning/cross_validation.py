"""`python -m deq_lightning cross_validate`: a run for every fold, and what they come to."""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deq_lightning.parsing import UsageError
from deq_lightning.runs import read_checkpoint, run_name

RESULTS = "cross_validation.json"
PROTOCOLS = {
    False: "each fold's epoch is selected by a validation part of the other folds",
    True: "not comparable: each fold's epoch is selected by its own test accuracy, as in most published results",
}
Main = Callable[..., Any]  # the command line's own, from arguments to its object


def cross_validate(args: Sequence[str], main: Main) -> Any:
    """Fit and test a fresh model for every fold of the data, and write down each result as soon as it is there.

    The same command again goes on where it was interrupted, within a fold from its last checkpoint.

    Args:
        args: what is typed after `cross_validate`.
        main: runs the command line.

    Returns:
        The command line object of the arguments, built and not run.

    Raises:
        UsageError: if the data has no folds, or the folder holds the results of another command.
    """
    options, rest = _parser().parse_known_args(args)
    cli = main(rest, run=False)  # so that whatever is wrong is said before the first fold
    if not hasattr(cli.datamodule, "folds"):
        name = type(cli.datamodule).__name__
        raise UsageError(f"`cross_validate` needs data that comes in folds, `TUGraphs`, got `{name}`.")
    select_on_test = options.select_on_test == "true"
    name = options.run or run_name(cli.config) + ("_folds_selected_on_test" if select_on_test else "_folds")
    folder = Path(cli.config.trainer.default_root_dir or "checkpoints") / name
    departures = getattr(cli.datamodule, "departures", [])
    results = _begin(folder, rest, "; ".join([PROTOCOLS[select_on_test], *departures]))
    for fold in range(cli.datamodule.folds):
        if str(fold) not in results["folds"]:
            results["folds"][str(fold)] = _run(main, rest, select_on_test, folder, fold)
            _write(folder, results)
    print(_table(results))
    print(f"results: {folder / RESULTS}")
    return cli


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        "were; not for results of your own.",
    )
    parser.add_argument("--run", help="Name of the folder. By default that of the config with `_folds` after it.")
    return parser


def _begin(folder: Path, arguments: list[str], protocol: str) -> dict[str, Any]:
    """Return the results so far."""
    new = {"arguments": arguments, "protocol": protocol, "folds": {}}
    path = folder / RESULTS
    if not path.is_file():
        _write(folder, new)
        return new
    found = json.loads(path.read_text())
    if any(found[key] != new[key] for key in ("arguments", "protocol")):
        typed = " ".join(found["arguments"])
        raise UsageError(f"`{folder}` holds the folds of another command (`{typed}`). Type `--run NAME` for a new one.")
    return found


def _write(folder: Path, results: dict[str, Any]) -> None:
    """Write the results with their mean and standard deviation, all or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    values = [fold["test"] for fold in results["folds"].values()]
    if values:
        # Of the folds themselves, divided by their number, as NumPy does and most published deviations.
        results |= {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}
    draft = folder / f"{RESULTS}.part"
    draft.write_text(json.dumps(results, indent=2) + "\n")
    draft.replace(folder / RESULTS)


def _run(main: Main, rest: list[str], select_on_test: bool, folder: Path, fold: int) -> dict[str, Any]:
    """Fit one fold, from its last checkpoint if there is one, and return its results."""
    own = folder / f"fold-{fold}"
    arguments = ["fit", *rest, "--data.fold", str(fold), "--test_after_fit", "true"]
    if select_on_test:
        arguments += ["--data.validate_on_test", "true"]
    if (own / "last.ckpt").is_file():
        arguments += ["--ckpt_path", str(own / "last.ckpt")]
    else:
        shutil.rmtree(own, ignore_errors=True)  # of a run that did not come to its first checkpoint
        arguments += ["--run", f"{folder.name}/{own.name}"]
    began = time.monotonic()
    cli = main(arguments)
    (best,) = [callback for callback in cli.trainer.checkpoint_callbacks if callback.monitor]
    figure = best.monitor.removeprefix("val_")
    return {
        "figure": figure,
        "val": best.best_model_score.item(),
        "test": cli.trainer.callback_metrics[f"test_{figure}"].item(),
        "epoch": read_checkpoint(best.best_model_path)["epoch"],
        "seconds": round(time.monotonic() - began, 1),
    }


def _table(results: dict[str, Any]) -> str:
    """Return the results as text."""
    folds = results["folds"]
    figure = next(iter(folds.values()))["figure"]
    lines = [results["protocol"], f"{'fold':>4}  {'val_' + figure:>8}  {'test_' + figure:>8}  epoch  seconds"]
    for number, fold in folds.items():
        lines.append(f"{number:>4}  {fold['val']:8.4f}  {fold['test']:8.4f}  {fold['epoch']:5}  {fold['seconds']:7.1f}")
    return "\n".join([*lines, f"test_{figure} {results['mean']:.4f} ± {results['std']:.4f} over {len(folds)} folds"])
