"""The command line: `fit`, `validate`, `test`, `predict`, `cross_validate`."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from deq_lightning.app.checkpoints import check_fits, load_weights, read_checkpoint
from deq_lightning.app.configs import ConfigByName
from deq_lightning.app.cross_validate import cross_validate
from deq_lightning.app.front import main as main
from deq_lightning.app.messages import UsageError
from deq_lightning.app.names import families, load_named
from deq_lightning.app.parser import Parser
from deq_lightning.app.runs import SaveConfig, free_folder, run_name, say, with_own_config
from deq_lightning.app.translation import in_brief
from deq_lightning.callbacks import DivergenceError, DivergenceGuard, EquilibriumMonitor, PredictionWriter
from deq_lightning.configured import CombinationError, RunError
from deq_lightning.data import DataError
from deq_lightning.gradients import GradientStrategy
from deq_lightning.tasks import ImplicitTask

# Warnings about Lightning's own doings, of which the user can change nothing.
QUIET = (
    "LightningCLI's args parameter",  # they are the shell's own, completed
    "Checkpoint directory .* exists and is not empty",  # the run's config is there
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning 2.6 with torch 2.15
)

# Two callbacks, because Lightning's `save_last` writes only when the best one changes.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "best_checkpoint": {"filename": "best", "monitor": "val_acc", "mode": "max", "enable_version_counter": False},
    "last_checkpoint": {"filename": "last", "enable_version_counter": False},
}

CALLBACKS = {"monitor": EquilibriumMonitor, "guard": DivergenceGuard, "predictions": PredictionWriter}


class DEQCLI(LightningCLI):
    """LightningCLI with a gradient strategy under its own key, a folder for every run, and short errors."""

    folder: Path | None = None
    checkpoint: dict[str, Any] | None = None

    def __init__(self, args: Sequence[str], run: bool) -> None:
        self.first = next(iter(args), None)
        super().__init__(
            ImplicitTask,
            pl.LightningDataModule,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            trainer_defaults={"log_every_n_steps": 10},
            parser_class=Parser,
            parser_kwargs={"prog": "deq_lightning"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=list(args),
            run=run,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the subcommand that is typed, with the arguments it skips: the parsers of all take four times as long.

        All of them, if something is typed before it, such as a config with a section for each.
        """
        every = LightningCLI.subcommands()
        return {self.first: every[self.first]} if self.first in every else every

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that finds configs by name."""
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ConfigByName,
            help="A config: a path, or the bare name of one of those that come with the package. Several are merged in "
            "their order; what stands after them on the command line wins.",
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys beside Lightning's `trainer`, `model` and `data`."""
        parser.add_subclass_arguments(
            GradientStrategy,
            "gradient",
            default={"class_path": "deq_lightning.UPG"},
            help="How the equilibrium is differentiated: `--gradient NPG --gradient.k 3`.",
        )
        parser.callback_keys.append("gradient")
        for key, defaults in CHECKPOINTS.items():
            parser.add_lightning_class_args(ModelCheckpoint, key)
            parser.set_defaults({f"{key}.{name}": value for name, value in defaults.items()})
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Name of the run, and of its folder under `checkpoints`. null: the name of the config. A name that is "
            "taken gets a number.",
        )
        parser.add_argument(
            "--weights",
            type=str | None,
            default=None,
            help="A checkpoint whose weights `fit` starts from, where names and shapes are the same; optimizer, "
            "schedule and steps start anew. To continue a run use `--ckpt_path`, which wins.",
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Whether `fit` ends by testing the best checkpoint."
        )

    def _parse_ckpt_path(self) -> None:
        """Leave Lightning's merge out: it would let the checkpoint's hyper-parameters beat the command line."""

    def before_instantiate_classes(self) -> None:
        """Read the checkpoint, and send what is written to the run's folder: the checkpoint's own or a new one."""
        config = self.config.get(str(self.subcommand), self.config)
        ckpt_path = config.get("ckpt_path")
        if ckpt_path is not None:
            self.checkpoint = read_checkpoint(ckpt_path)
            self.folder = Path(ckpt_path).parent
        if self.subcommand == "fit":
            self._begin_run(config)
        elif self.subcommand is not None and config.trainer.logger is None:
            config.trainer.logger = False  # a test adds no curves to those of the run
        if self.folder is not None:
            config.predictions.path = config.predictions.path or str(self.folder / "predictions.csv")
            for key in (*CHECKPOINTS, "guard"):
                config[key].dirpath = config[key].dirpath or str(self.folder)

    def _begin_run(self, config: Namespace) -> None:
        """Choose the folder of the run and send its curves there."""
        typed = Namespace({**vars(config.clone()), "ckpt_path": None, "run": None})
        if self.folder is None or config.run is not None:
            parent = Path(config.trainer.default_root_dir or "checkpoints")
            self.folder = free_folder(parent, config.run or run_name(config))
        self.save_config_kwargs = {"folder": self.folder, "typed": typed}
        if config.trainer.logger is None:
            place = Namespace(save_dir=str(self.folder), name="", version="")
            config.trainer.logger = Namespace(class_path="pytorch_lightning.loggers.TensorBoardLogger", init_args=place)

    def instantiate_classes(self) -> None:
        """Build everything; what a constructor refuses is the user's to mend."""
        try:
            super().instantiate_classes()
            if self.subcommand == "fit":
                self.model.make_optimizer(self.model.parameters())  # refuses a bad learning rate before the run begins
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(in_brief(str(error), families())) from error
        except RuntimeError as error:
            if "more than one stateful callback" not in str(error):
                raise
            raise UsageError("a gradient strategy goes under `--gradient`, not among `--trainer.callbacks`.") from error
        weights = self._get(self.config, "weights")
        if self.checkpoint is not None:
            check_fits(self.model, self.checkpoint, self._get(self.config, "ckpt_path"))
        elif self.subcommand == "fit" and weights is not None:
            say(f"weights: {load_weights(self.model, weights)}")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer, without the callbacks that save if `--trainer.enable_checkpointing false` says so."""
        if self._get(self.config, "trainer").enable_checkpointing is False:
            keys = self._parser(self.subcommand).callback_keys
            keys[:] = [key for key in keys if key not in CHECKPOINTS]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Say what really runs."""
        models = self.model.implicit_models()
        if models:
            say(f"gradient: {self._get(self.config_init, 'gradient')}")
        for solver in dict.fromkeys(str(model.solver) for model in models):
            say(f"solver: {solver}")
        if not models:
            say(f"net: {type(self.model.net).__name__}, which has no equilibrium; `--gradient` has no effect")
        say(f"run: {self.folder}")
        self._say_departures()

    def after_test(self) -> None:
        """Say what the figures do not mean."""
        self._say_departures()

    @property
    def departures(self) -> list[str]:
        """What makes results other than they should be."""
        return [departure for part in (self.datamodule, self.model) for departure in getattr(part, "departures", [])]

    def _say_departures(self) -> None:
        """Label results that were not got as they should be."""
        for departure in self.departures:
            say(f"not comparable: {departure}")

    def after_fit(self) -> None:
        """Test the best checkpoint, and say where it is and what to type next."""
        best, last = (self._get(self.config_init, key) for key in CHECKPOINTS)
        if not best.best_model_path:
            if last.best_model_path:  # stopped before the first validation
                path = _from_here(last.best_model_path)
                say(f"last checkpoint: {path}\nnext: python -m deq_lightning fit --ckpt_path {path}")
            return
        path = _from_here(best.best_model_path)
        say(f"best checkpoint: {path} ({best.monitor} {best.best_model_score:.4g})")
        following = "test"
        if self._get(self.config, "test_after_fit"):
            (metrics,) = self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False)
            say("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
            self._say_departures()
            following = "predict"
        say(f"next: python -m deq_lightning {following} --ckpt_path {path}")


def _from_here(path: str) -> str:
    """Return the path relative to the current folder if it lies in it."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def _texts(args: Sequence[str]) -> Iterator[str]:
    """Yield what is typed, and what the files hold that are named there."""
    for arg in args:
        yield arg
        path = Path(arg.split("=", 1)[-1])
        if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            yield path.read_text()


def command(args: Sequence[str], run: bool = True) -> DEQCLI:
    """Run the command line on arguments that begin with a subcommand, or build what they say; see `main`."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    load_named(_texts(args))
    try:
        if run and args[0] == "cross_validate":
            return cross_validate(args[1:], command)
        return DEQCLI(with_own_config(args) if run else args, run)
    except (UsageError, CombinationError, DataError, MisconfigurationException) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except DivergenceError as error:
        say(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)  # on any process: it need not be the first one's
        raise SystemExit(1) from error
