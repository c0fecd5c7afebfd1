"""The subcommands beside Lightning's own."""

from deq_lightning.app.export import ExportTrainer
from deq_lightning.app.scale import ScaleTrainer

OWN = {name: {"model", "datamodule"} for name in ("scale", "export")}  # with the arguments that a parser skips


class OwnTrainer(ScaleTrainer, ExportTrainer):
    """Lightning's trainer with a method for each of them."""
