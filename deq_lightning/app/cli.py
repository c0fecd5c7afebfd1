"""LightningCLI as this program has it: what is parsed, built and run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from deq_lightning.app.checkpoints import check_fits, load_weights, read_checkpoint
from deq_lightning.app.configs import ConfigByName
from deq_lightning.app.ending import curves, in_words
from deq_lightning.app.fitting import check_task, class_of, fill_sizes, refusals, try_out
from deq_lightning.app.header import Header, departures, say_departures
from deq_lightning.app.keys import CHECKPOINTS, add_keys
from deq_lightning.app.parser import Parser, build
from deq_lightning.app.progress import display, progress
from deq_lightning.app.runs import SaveConfig, free_folder, from_here, run_name, say
from deq_lightning.app.selection import Selection, select_by_task
from deq_lightning.app.stops import Footprint, stoppable
from deq_lightning.data import DataError
from deq_lightning.samples import Samples, samples_of
from deq_lightning.tasks import ImplicitTask


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
        """Add the keys beside Lightning's own."""
        add_keys(parser)

    def _parse_ckpt_path(self) -> None:
        """Leave Lightning's merge out: it would let the checkpoint's hyper-parameters beat the command line."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and keep what was typed or read from a config; the data may decide the rest."""
        names = {arg.split("=")[0] for arg in args}
        complete = names & {"-c", "--config"} or {"--model", "--data"} <= names
        self.args, self.printing = args, bool(complete) and "--print_config" in names
        if self.printing:  # once the data has been asked
            args = [arg for arg in args if not arg.startswith("--print_config")]
        super().parse_arguments(parser, args)
        self.typed = parser.parse_args(args, defaults=False)

    def before_instantiate_classes(self) -> None:
        """Read the checkpoint, and send what is written to the run's folder: the checkpoint's own or a new one."""
        config = self._own(self.config)
        ckpt_path = config.get("ckpt_path")
        if ckpt_path is not None:
            self.checkpoint = read_checkpoint(ckpt_path)
            self.folder = Path(ckpt_path).parent
        with refusals(config):
            self._fit_to_data(config)
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
        self.footprint = Footprint(self.folder, (self.checkpoint or {}).get("global_step", 0))
        self.save_config_kwargs = {"folder": self.folder, "typed": typed}
        if config.trainer.logger is None:
            place = Namespace(save_dir=str(self.folder), name="", version="")
            config.trainer.logger = Namespace(class_path="pytorch_lightning.loggers.TensorBoardLogger", init_args=place)

    def _fit_to_data(self, config: Namespace) -> None:
        """Build the data, and make the settings of task and network those for what it is."""
        self.datamodule = self._build_one("data", config)
        name = type(self.datamodule).__name__
        try:
            self.samples = samples_of(self.datamodule)
        except DataError:
            if not self.printing:
                raise  # printing a config needs no data
        filled = []
        if self.samples is not None:
            check_task(class_of(config.model), self.samples, name)
            filled = fill_sizes(config, self._own(self.typed), self.samples, name)
        if self.printing:
            self.parser.parse_args([*self.args, *filled])  # prints, and ends the program
        vars(self).pop("config_dump", None)  # Lightning saves hyper-parameters from this dump, made before the sizes

    def instantiate_classes(self) -> None:
        """Build everything; report what a constructor refuses in a line."""
        with refusals(self._own(self.config)):
            self._build()
        weights = self._get(self.config, "weights")
        if self.checkpoint is not None:
            check_fits(self.model, self.checkpoint, self._get(self.config, "ckpt_path"))
        elif self.subcommand == "fit" and weights is not None:
            say(f"weights: {load_weights(self.model, weights)}")

    def _build(self) -> None:
        """Build the task, and the rest for what the task is."""
        self.model = self._build_one("model", self._own(self.config))
        if self.samples is not None:
            check_task(self.model, self.samples, type(self.datamodule).__name__)
        if self.subcommand == "fit":
            self.model.make_optimizer(self.model.parameters())  # refuses a bad learning rate before the run begins
            if self.samples is not None:
                try_out(self.model, self.samples, type(self.datamodule).__name__)
        rest = self.config.clone()
        own = self._own(rest)
        select_by_task(own.best_checkpoint, self._own(self.typed).get("best_checkpoint"), self.model)
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
        seen = [Header(self.folder, self._get(self.config, "seed_everything")), best] if fit else []
        # Behind all other callbacks, so that what those log of a batch is there.
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": [*seen, *progress(typed, fit)]}
        return super().instantiate_trainer(**display(typed), **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand, and end cleanly if it is stopped."""
        last, guard = (self._get(self.config_init, key) for key in ("last_checkpoint", "guard"))
        with stoppable(self.trainer, self.footprint, last, guard):
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
        best, last = (self._get(self.config_init, key) for key in CHECKPOINTS)
        written = best.best_model_path or last.best_model_path
        path, following = from_here(written), "fit"
        if best.best_model_path:
            say(f"best checkpoint: {path} ({best.monitor} {best.best_model_score:.4g})", flush=True)
            following = "test"
        elif written:
            say(f"last checkpoint: {path}")  # stopped before the first validation
        if following == "test" and self._get(self.config, "test_after_fit"):
            (metrics,) = self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False)
            say("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
            self._say_in_words("test")
            following = "predict"
        for folder in curves(self.trainer):
            say(f"curves: tensorboard --logdir {folder}")
        if written:
            say(f"next: python -m deq_lightning {following} --ckpt_path {path}")
