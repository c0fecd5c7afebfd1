"""The command: its options, its trials, and its folder."""

import argparse
import json
import shlex
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from deq_lightning.app.compare.axes import Setting
from deq_lightning.app.compare.claims import claimed
from deq_lightning.app.compare.shared import Main, check_flags, fit_or_fail, keep_base, place_of
from deq_lightning.app.extra import with_callbacks
from deq_lightning.app.messages import Options, UsageError
from deq_lightning.app.report.reading import RESULTS
from deq_lightning.app.runs import say
from deq_lightning.app.search.space import Dimension, dimensions
from deq_lightning.app.tables import show

STUDY = "study.log"  # Optuna's own file
COSTS = ("seconds_per_step", "peak_memory_mib")


def search(args: Sequence[str], main: Main) -> Any:
    """Let Optuna choose settings, run by run, and show the best.

    The same command again goes on where it was interrupted; other processes that share the folder join in.

    Args:
        args: what is typed after `search`.
        main: runs the command line.

    Returns:
        The command line object of the settings that all runs share, built and not run.

    Raises:
        UsageError: if the options are wrong, Optuna is missing, or the folder holds runs of other settings.
    """
    options, rest = _parser().parse_known_args(args)
    space = dimensions(options.space)
    if options.trials < 1:
        raise UsageError(f"`--trials` must be 1 or more, got {options.trials}.")
    if options.prune and options.minimize:
        raise UsageError("`--prune` looks at one figure, and `--minimize` adds another. Leave one of them out.")
    optuna = _optuna()
    cli = main(rest, run=False)  # so that whatever is wrong is said before the first run
    parent, name = place_of(cli, options.name, "searched")
    if cli.trainer.world_size > 1:
        raise UsageError(
            "`search` does a trial in one process. Type `--trainer.devices 1`, and the command several times."
        )
    check_flags([_corner(space, last) for last in (False, True)], rest, main)
    keep_base(parent / name / "search.json", cli)
    best, seed = cli.config_init.best_checkpoint, cli.config.seed_everything
    hunt = Search(optuna, parent / name, space, str(best.monitor), best.mode, options.minimize, seed)
    last = f"{cli.config.last_checkpoint.filename}.ckpt"
    hunt.go(options.trials, lambda setting: fit_or_fail(setting, rest, parent, name, last, main), options.prune)
    hunt.report(rest)
    return cli


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="deq_lightning search",
        description="Let Optuna choose settings, run by run, by the validation figure that chooses the best "
        "checkpoint. The same command again goes on where it was interrupted; several at a time share the trials.",
        epilog="Everything else is as for `fit`: `--config digits_upg --space gradient.k=1..8 --space "
        "model.optimizer.lr=log:1e-4..1e-1 --trials 30`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--space",
        action="append",
        required=True,
        metavar="FLAG=RANGE",
        help="What may be chosen: a flag of `fit`, and numbers (1..8, 0.1..0.9, log:1e-4..1e-1) or one of a,b,c.",
    )
    parser.add_argument("--trials", type=int, default=30, help="Runs in all, those of before among them.")
    parser.add_argument("--prune", action="store_true", help="Stop trials whose figure is below the median of others.")
    parser.add_argument("--minimize", choices=COSTS, help="A second figure to be small; the best of both are shown.")
    parser.add_argument("--name", help="Name of the folder. By default that of the config with `_searched` after it.")
    return parser


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError("`search` needs Optuna. Type `pip install optuna`.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _corner(space: Sequence[Dimension], last: bool) -> Setting:
    """Return the smallest, or the largest, of every value."""
    return Setting(tuple((one.key, one.end(last)) for one in space), "")


class Search:
    """A study of Optuna, and the runs that belong to it.

    Args:
        optuna: the library.
        folder: of the study.
        space: what may be chosen.
        monitor: the figure that ranks trials.
        mode: `min` or `max` of it.
        cost: a second figure, of the results of a run, to be small. None: there is none.
        seed: of the sampler.
    """

    def __init__(
        self,
        optuna: Any,
        folder: Path,
        space: Sequence[Dimension],
        monitor: str,
        mode: str,
        cost: str | None,
        seed: Any,
    ) -> None:
        self.optuna = optuna
        self.folder = folder
        self.space = space
        self.monitor = monitor
        self.cost = cost
        self.seed = seed
        backend = optuna.storages.journal.JournalFileBackend(str(folder / STUDY))
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="search",
            directions=[f"{mode}imize", *(["minimize"] if cost else [])],
            load_if_exists=True,
        )

    def go(self, trials: int, fit: Callable[[Setting], str | None], prune: bool) -> None:
        """Do trials until there are so many: first those that a process has left that is gone, then new ones.

        Args:
            trials: in all.
            fit: fits a setting, and returns what went wrong.
            prune: whether to stop those that promise little.
        """
        for left in self.study.get_trials(deepcopy=False, states=[self.optuna.trial.TrialState.RUNNING]):
            self._do(self.optuna.trial.Trial(self.study, left._trial_id), fit, prune)
        while (number := len(self.study.get_trials(deepcopy=False))) < trials:
            seed = zlib.crc32(f"{self.seed} {number}".encode())  # a study is the same each time, in one process
            self.study.sampler = self.optuna.samplers.TPESampler(seed=seed)
            self._do(self.study.ask(), fit, prune)

    def _do(self, trial: Any, fit: Callable[[Setting], str | None], prune: bool) -> None:
        """Do a trial, unless another process is at it."""
        name = f"trial-{trial.number}"
        with claimed(self.folder / "claims", name) as ours:
            if not ours or self.study.get_trials(deepcopy=False)[trial.number].state.is_finished():
                return
            setting = Setting(tuple((one.key, one.choose(trial)) for one in self.space), name)
            pruning = Pruning(trial, self.monitor)
            with with_callbacks(*([pruning] if prune else [])):
                error = fit(setting)
            states = self.optuna.trial.TrialState
            values = None if error else self._values(name)
            if values is None:
                trial.set_user_attr("error", error or f"no {self.monitor}")
                self.study.tell(trial, state=states.FAIL)
            elif pruning.pruned:
                self.study.tell(trial, state=states.PRUNED)
            else:
                self.study.tell(trial, values)

    def _values(self, name: str) -> list[float] | None:
        found = json.loads((self.folder / name / RESULTS).read_text())
        values = [found["best"], *([found[self.cost]] if self.cost else [])]
        return None if None in values else values

    def report(self, rest: Sequence[str]) -> None:
        """Print the trials, the best last, and the command of each of the best.

        Args:
            rest: arguments that all of them share.
        """
        trials = self.study.get_trials(deepcopy=False)
        done = [trial for trial in trials if trial.values]
        sign = -1 if self.study.directions[0] == self.optuna.study.StudyDirection.MAXIMIZE else 1
        rows = [self._row(trial) for trial in trials if not trial.values]
        rows += [self._row(trial) for trial in sorted(done, key=lambda trial: -sign * trial.values[0])]
        show(rows, {"trials": len(trials), "completed": sum(trial.state.name == "COMPLETE" for trial in trials)})
        for trial in self.study.best_trials:
            flags = [part for one in self.space for part in (f"--{one.key}", one.shown(trial.params[one.key]))]
            values = ", ".join(f"{value:.4g}" for value in trial.values)
            say(f"best, {values}: python -m deq_lightning fit {shlex.join([*rest, *flags])}")

    def _row(self, trial: Any) -> dict[str, Any]:
        values = dict(zip([self.monitor, self.cost], trial.values or [], strict=False))
        error = trial.user_attrs.get("error", "").strip()[:60]
        state = trial.state.name.lower() + (f": {error}" if error else "")
        return {"trial": trial.number, **trial.params, **values, "state": state}


class Pruning(Callback):
    """Tells Optuna the figure of every validation, and stops the run where it promises little.

    Args:
        trial: of Optuna.
        monitor: the figure.
    """

    def __init__(self, trial: Any, monitor: str) -> None:
        self.trial = trial
        self.monitor = monitor
        self.pruned = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell, and ask."""
        del pl_module
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None:
            return
        self.trial.report(float(value), trainer.current_epoch)
        if self.trial.should_prune():
            self.pruned = trainer.should_stop = True
