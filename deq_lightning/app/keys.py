"""The keys of the command line beside Lightning's `trainer`, `model` and `data`."""

from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser

from deq_lightning.callbacks import DivergenceGuard, EquilibriumMonitor, PredictionWriter
from deq_lightning.gradients import GradientStrategy

# Two callbacks, because Lightning's `save_last` writes only when the best one changes.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "best_checkpoint": {"filename": "best", "enable_version_counter": False},
    "last_checkpoint": {"filename": "last", "enable_version_counter": False},
}

CALLBACKS = {"monitor": EquilibriumMonitor, "guard": DivergenceGuard, "predictions": PredictionWriter}


def add_keys(parser: LightningArgumentParser) -> None:
    """Add them to the parser of a subcommand."""
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
        "--ema.decay",
        type=float | None,
        default=None,
        help="Share of the weights' exponential average that a step leaves as it was, in (0, 1), such as 0.999. The "
        "average is evaluated and saved. null: none.",
    )
    parser.add_argument(
        "--name",
        type=str | None,
        default=None,
        help="Name of the run, and of its folder under `checkpoints`. null: the name of the config. A name that is "
        "taken gets a number.",
    )
    parser.add_argument(
        "--weights",
        type=str | None,
        default=None,
        help="A checkpoint whose weights a run starts from, where names and shapes are the same; optimizer, "
        "schedule and steps start anew. To continue a run use `--ckpt_path`, which wins.",
    )
    parser.add_argument(
        "--trust_config",
        type=bool,
        default=False,
        help="Whether a config that lies beside a checkpoint, rather than being typed, may name classes of others and "
        "places outside of its folder. Only what is typed counts.",
    )
    parser.add_argument(
        "--test_after_fit", type=bool, default=True, help="Whether `fit` ends by testing the best checkpoint."
    )
    parser.add_argument(
        "--report", type=bool, default=True, help="Whether `fit` ends by writing a page with pictures of the run."
    )
