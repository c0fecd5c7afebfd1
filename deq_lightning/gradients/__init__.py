"""Gradient strategies; they see only the map, its fixed point and the incoming gradient."""

from deq_lightning.gradients.base import GradientStrategy as GradientStrategy
from deq_lightning.gradients.implicit import Implicit as Implicit
from deq_lightning.gradients.jfb import JFB as JFB
from deq_lightning.gradients.npg import NPG as NPG
from deq_lightning.gradients.reversible import Reversible as Reversible
from deq_lightning.gradients.roulette import RouletteNPG as RouletteNPG
from deq_lightning.gradients.shine import SHINE as SHINE
from deq_lightning.gradients.unrolled import Unrolled as Unrolled
from deq_lightning.gradients.upg import UPG as UPG
