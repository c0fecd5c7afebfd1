"""The subcommands beside Lightning's own, and those that differ from them."""

from deq_lightning.app.export import ExportTrainer
from deq_lightning.app.predicting import PredictTrainer
from deq_lightning.app.scale import ScaleTrainer

OWN = {name: {"model", "datamodule"} for name in ("scale", "export")}  # with the arguments that a parser skips
LIGHTNINGS = {"fit", "validate", "test"}  # which need no more than its trainer has


class OwnTrainer(ScaleTrainer, ExportTrainer, PredictTrainer):
    """Lightning's trainer with a method for each of them, and with new inputs for `predict`."""
