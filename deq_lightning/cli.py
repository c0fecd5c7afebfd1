"""The console script's entry point, under its old name."""

from deq_lightning.app.front import main as main
