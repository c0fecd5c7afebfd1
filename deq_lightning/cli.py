"""The console script's entry point, under its old name."""

from deq_lightning.app.cli import main as main
