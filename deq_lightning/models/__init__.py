"""Implicit models, which know neither the solver nor the gradient they are given, and baselines without either."""

from deq_lightning.models.base import Equilibrium as Equilibrium
from deq_lightning.models.base import ImplicitModel as ImplicitModel
from deq_lightning.models.base import Network as Network
from deq_lightning.models.fpn import FPN as FPN
from deq_lightning.models.fpn_dense import DenseFPN as DenseFPN
from deq_lightning.models.ignn import IGNN as IGNN
from deq_lightning.models.ignn import ImplicitGraphLayer as ImplicitGraphLayer
from deq_lightning.models.ignn_classifiers import IGNNGraphClassifier as IGNNGraphClassifier
from deq_lightning.models.ignn_classifiers import IGNNNodeClassifier as IGNNNodeClassifier
from deq_lightning.models.ignn_classifiers import IGNNSkipNodeClassifier as IGNNSkipNodeClassifier
from deq_lightning.models.mdeq import MDEQ as MDEQ
from deq_lightning.models.mdeq import MDEQSegmentation as MDEQSegmentation
from deq_lightning.models.mon import MON as MON
from deq_lightning.models.mon import MONConv as MONConv
from deq_lightning.models.mon import MONMultiTier as MONMultiTier
from deq_lightning.models.neural_ode import IntegrationError as IntegrationError
from deq_lightning.models.neural_ode import NeuralODE as NeuralODE
from deq_lightning.models.transformer import DEQTransformer as DEQTransformer
from deq_lightning.models.transformer import LanguageOutput as LanguageOutput
from deq_lightning.models.transformer import Memory as Memory
from deq_lightning.models.transformer import Segment as Segment
