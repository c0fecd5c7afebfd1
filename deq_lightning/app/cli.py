"""LightningCLI as this program has it: what is parsed, built and run."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from deq_lightning.app.beginning import begin, with_logger_folder, write_to
from deq_lightning.app.checkpoints import check_fits, load_weights, read_checkpoint, restoring
from deq_lightning.app.commands import LIGHTNINGS, OWN, OwnTrainer
from deq_lightning.app.configs import ConfigByName
from deq_lightning.app.continuing import check_continues, check_optimizer, go_on_with, other_splits
from deq_lightning.app.ending import check_trained, in_words, report_fit
from deq_lightning.app.extra import CALLBACKS
from deq_lightning.app.fitting import check_task, check_trainer, class_of, fill_sizes, follow_seed, refusals, try_out
from deq_lightning.app.found import option
from deq_lightning.app.header import Header, departures, say_departures
from deq_lightning.app.keys import CHECKPOINTS, add_keys
from deq_lightning.app.messages import UsageError
from deq_lightning.app.parser import Parser, build
from deq_lightning.app.predicting import described, new_inputs
from deq_lightning.app.progress import display, progress
from deq_lightning.app.results import Results
from deq_lightning.app.runs import SaveConfig, record_of, say
from deq_lightning.app.selection import Selection, mode_is_open, name_several, select_by_task
from deq_lightning.app.stops import Footprint, Stop, stoppable
from deq_lightning.app.storage import carry, with_storage
from deq_lightning.callbacks import EMA
from deq_lightning.callbacks.ema import drop_averaging
from deq_lightning.samples import Samples
from deq_lightning.tasks import ImplicitTask

UNTRAINED = "`{}` needs trained weights. Type `--ckpt_path PATH`, or `--ckpt_path null` for those it is made with."


class DEQCLI(LightningCLI):
    """LightningCLI with a gradient strategy under its own key, a folder for every run, and short errors.

    Args:
        args: what is typed after the program's name.
        run: whether to run the subcommand. False: build only; `args` then have no subcommand.
    """

    folder: Path | None = None
    samples: Samples | None = None
    footprint: Footprint | None = None
    checkpoint: dict[str, Any] | None = None
    notes: Sequence[str] = ()

    def __init__(self, args: Sequence[str], run: bool) -> None:
        self.first, self.runs = next(iter(args), None), run
        with self._nothing_left():
            self._parse_build_run(args, run)

    @contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """Delete what a fit wrote that ends before its first step, and let others into its folder."""
        try:
            yield
        except BaseException:
            trainer = vars(self).get("trainer")  # there may be none yet
            step = 0 if trainer is None else trainer.global_step
            if self.footprint is not None and step in (0, self.footprint.step):
                self.footprint.remove()
            raise
        finally:
            if self.footprint is not None:
                self.footprint.release()

    def _parse_build_run(self, args: Sequence[str], run: bool) -> None:
        super().__init__(
            ImplicitTask,
            pl.LightningDataModule,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            trainer_class=pl.Trainer if not run or self.first in LIGHTNINGS else OwnTrainer,
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
        every = {**LightningCLI.subcommands(), **OWN}
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
        """Add the keys beside Lightning's own."""
        add_keys(parser)
        if not self.runs:  # so that the config of a run can be built from
            for name in ("ckpt_path", "weights_only"):
                parser.add_argument(f"--{name}", default=None, help=argparse.SUPPRESS)

    def _parse_ckpt_path(self) -> None:
        """Leave Lightning's merge out: it would let the checkpoint's hyper-parameters beat the command line."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and keep what was typed or read from a config; the data may decide the rest."""
        names = {arg.split("=")[0] for arg in args}
        complete = names & {"-c", "--config"} or {"--model", "--data"} <= names
        args = with_logger_folder(args)
        self.args, self.printing = args, bool(complete) and "--print_config" in names
        if self.printing:  # once the data has been asked
            args = [arg for arg in args if not arg.startswith("--print_config")]
        super().parse_arguments(parser, args)
        self.typed = parser.parse_args(args, defaults=False)

    def _set_seed(self) -> None:
        """Seed the run, after a check that Lightning makes with a traceback."""
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool | None) and not 0 <= seed < 2**32:
            raise UsageError(f"`--seed_everything` must be a whole number from 0 to {2**32 - 1}, got {seed}.")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Read the checkpoint, and send what is written to the run's folder: the checkpoint's own or a new one."""
        config = self._own(self.config)
        ckpt_path = config.get("ckpt_path")
        if ckpt_path is not None:
            self.checkpoint = read_checkpoint(ckpt_path)
            self.folder = Path(ckpt_path).parent
        elif self._evaluates(config) and config.weights is None and option(self.args, "--ckpt_path") is None:
            raise UsageError(UNTRAINED.format(self.subcommand))
        check_trainer(config.trainer)
        self.notes = list(self._go_on(config, str(ckpt_path))) if self.checkpoint is not None else ()
        for note in self.notes if self.subcommand != "fit" else ():  # the header of a fit says them
            say(note)
        follow_seed(config, self._own(self.typed))
        with refusals(config):
            self._fit_to_data(config)
        if self.subcommand == "fit":
            self._begin_run(config)
        elif self.subcommand is not None and config.trainer.logger is None:
            config.trainer.logger = False  # a test adds no curves to those of the run
        if self.folder is not None:
            write_to(self.folder, config)

    def _evaluates(self, config: Namespace) -> bool:
        return self.subcommand not in (None, "fit") and not self.printing and not config.trainer.fast_dev_run

    def _go_on(self, config: Namespace, ckpt_path: str) -> Iterator[str]:
        """Yield what is to be said of settings that do not fit the run of the checkpoint."""
        record = record_of(Path(ckpt_path).parent)
        if self.subcommand == "fit":
            assert self.checkpoint is not None
            check_continues(self.checkpoint, ckpt_path)
            yield from go_on_with(config, self._own(self.typed), self.checkpoint, record)
        yield from (f"not comparable: {reason}" for reason in other_splits(config, record))

    def _begin_run(self, config: Namespace) -> None:
        """Choose the folder of the run and send its curves there."""
        typed = Namespace({**vars(config.clone()), "ckpt_path": None, "name": None, "trust_config": False})
        old, self.footprint = self.folder, begin(config, self.checkpoint, self.folder)
        self.folder = self.footprint.folder
        if self.checkpoint is not None and old is not None:
            carry(self.checkpoint, old, self.folder)
        self.save_config_kwargs = {"folder": self.folder, "typed": typed}

    def _fit_to_data(self, config: Namespace) -> None:
        """Build the data, and make the settings of task and network those for what it is."""
        self.datamodule, inputs = self._build_one("data", config), config.get("inputs")
        name = type(self.datamodule).__name__
        self.samples = described(self.datamodule, self.checkpoint, needed=not self.printing and inputs is None)
        filled = []
        if self.samples is not None:
            check_task(class_of(config.model), self.samples, name)
            filled = fill_sizes(config, self._own(self.typed), self.samples, name)
        if self.printing:
            if mode_is_open(self._own(self.typed)):
                mode = self._build_one("model", config).mode_of(config.best_checkpoint.monitor)
                filled.append(f"--best_checkpoint.mode={mode}")
            self.parser.parse_args([*self.args, *filled])  # prints, and ends the program
        self.datamodule = new_inputs(self.datamodule, inputs)
        vars(self).pop("config_dump", None)  # Lightning saves hyper-parameters from this dump, made before the sizes

    def instantiate_classes(self) -> None:
        """Build everything; report what a constructor refuses in a line."""
        with refusals(self._own(self.config)):
            self._build()
        weights = self._get(self.config, "weights")
        if self.checkpoint is not None:
            path = self._get(self.config, "ckpt_path")
            check_fits(self.model, self.checkpoint, path)
            if self.subcommand == "fit":
                check_optimizer(self.model, self.checkpoint, path)
        elif self.subcommand is not None and weights is not None:
            say(f"weights: {load_weights(self.model, weights)}")

    def _build(self) -> None:
        """Build the task, and the rest for what the task is."""
        self.model = self._build_one("model", self._own(self.config))
        if self.samples is not None:
            check_task(self.model, self.samples, type(self.datamodule).__name__)
        if self.subcommand == "fit":
            self.model.try_optimizer()  # refuses bad arguments before the run begins
            if self.samples is not None:
                try_out(self.model, self.samples, type(self.datamodule).__name__)
        rest = self.config.clone()
        own = self._own(rest)
        select_by_task(own.best_checkpoint, self._own(self.typed).get("best_checkpoint"), self.model)
        if "typed" in self.save_config_kwargs and mode_is_open(self._own(self.typed)):
            self.save_config_kwargs["typed"].best_checkpoint.mode = own.best_checkpoint.mode
        name_several(own, CHECKPOINTS)
        del own["data"], own["model"]
        self.config_init = build(self.parser, rest)
        self._own(self.config_init).update(Namespace(data=self.datamodule, model=self.model))
        self.trainer = self.instantiate_trainer()

    def _build_one(self, key: str, config: Namespace) -> Any:
        return build(self._parser(self.subcommand), Namespace({key: config[key]}))[key]

    def _own(self, config: Namespace) -> Namespace:
        """Return the part of the subcommand."""
        return config.get(str(self.subcommand), config)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer with what is seen of the run, and without the callbacks that must not save."""
        typed = self._get(self.config_init, "trainer")
        if typed.enable_checkpointing is False:
            keys = self._parser(self.subcommand).callback_keys
            keys[:] = [key for key in keys if key not in CHECKPOINTS]
        fit = self.subcommand == "fit"
        monitor = self._own(self.typed).get("best_checkpoint.monitor")
        best = Selection(self._get(self.config_init, "best_checkpoint"), typed=monitor is not None)
        header = Header(self.folder, self._get(self.config, "seed_everything"), self.notes)
        decay = self._get(self.config_init, "ema.decay")
        average = [EMA(decay)] if decay is not None and self.subcommand in ("fit", None) else []
        folders = [self.folder, *(self._get(self.config_init, key).dirpath for key in CHECKPOINTS if fit)]
        plugins = with_storage(typed.plugins, filter(None, folders))
        # Behind all other callbacks, so that what those log of a batch is there.
        results = Results(self.folder if fit else None, fit and self._get(self.config, "report"))
        own = [header, best, results, *CALLBACKS] if fit else [Stop(), results]
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": [*own, *average, *progress(typed, fit)]}
        trainer = super().instantiate_trainer(**display(typed), plugins=plugins, **kwargs)
        if self.subcommand not in ("fit", None):
            drop_averaging(trainer)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand, and end cleanly if it is stopped."""
        last, guard = (self._get(self.config_init, key) for key in ("last_checkpoint", "guard"))
        with stoppable(self.footprint, last, guard), restoring(self._get(self.config, "ckpt_path")):
            super()._run_subcommand(subcommand)

    @property
    def departures(self) -> list[str]:
        """What makes results not comparable."""
        return departures(self.datamodule, self.model)

    def after_validate(self) -> None:
        """Say what the validation reached."""
        self._say_in_words("val")

    def after_test(self) -> None:
        """Say what the test reached, and what makes it not comparable."""
        self._say_in_words("test")

    def _say_in_words(self, split: str) -> None:
        for line in in_words(self.trainer.callback_metrics, split, self.model):
            say(line)
        say_departures(self.datamodule, self.model)

    def after_fit(self) -> None:
        """Test the best checkpoint, then say where it and the curves are and what to type next."""
        continued = self.checkpoint is not None
        check_trained(self.trainer, 0 if self.footprint is None else self.footprint.step, continued)
        drop_averaging(self.trainer)  # Lightning's own would restore the weights that were not averaged
        best, last = (self._get(self.config_init, key) for key in CHECKPOINTS)
        report_fit(best, last, self._test if self._get(self.config, "test_after_fit") else None, self.trainer)

    def _test(self, checkpoint: str) -> None:
        """Test a checkpoint of the run, and say what it reached."""
        results = self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, verbose=False)
        say("  ".join(f"{name} {value:.4g}" for metrics in results for name, value in metrics.items()))
        self._say_in_words("test")
