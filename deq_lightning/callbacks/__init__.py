"""Callbacks that write down or watch what a run does."""

from deq_lightning.callbacks.predictions import PredictionWriter as PredictionWriter
