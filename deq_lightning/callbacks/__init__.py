"""Callbacks that write down or watch what a run does."""

from deq_lightning.callbacks.guard import DivergenceError as DivergenceError
from deq_lightning.callbacks.guard import DivergenceGuard as DivergenceGuard
from deq_lightning.callbacks.monitor import EquilibriumMonitor as EquilibriumMonitor
from deq_lightning.callbacks.predictions import PredictionWriter as PredictionWriter
from deq_lightning.callbacks.tuner import SplittingTuner as SplittingTuner
