from .ema import EMA as EMA
from .guard import DivergenceError as DivergenceError
from .guard import DivergenceGuard as DivergenceGuard
from .monitor import EquilibriumMonitor as EquilibriumMonitor
from .predictions import PredictionWriter as PredictionWriter
from .splitting import SplittingTuner as SplittingTuner
