"""Training implicit (deep equilibrium) models with PyTorch Lightning."""

from importlib.metadata import version

from deq_lightning.callbacks import DivergenceGuard as DivergenceGuard
from deq_lightning.callbacks import EquilibriumMonitor as EquilibriumMonitor
from deq_lightning.callbacks import PredictionWriter as PredictionWriter
from deq_lightning.callbacks import SplittingTuner as SplittingTuner
from deq_lightning.data import CIFAR10 as CIFAR10
from deq_lightning.data import MNIST as MNIST
from deq_lightning.data import PPI as PPI
from deq_lightning.data import SVHN as SVHN
from deq_lightning.data import Chains as Chains
from deq_lightning.data import Cityscapes as Cityscapes
from deq_lightning.data import Digits as Digits
from deq_lightning.data import ImageNet as ImageNet
from deq_lightning.data import KarateClub as KarateClub
from deq_lightning.data import PythonDocs as PythonDocs
from deq_lightning.data import TUGraphs as TUGraphs
from deq_lightning.data import WikiText2 as WikiText2
from deq_lightning.data import WikiText103 as WikiText103
from deq_lightning.estimators import JacobianPenalty as JacobianPenalty
from deq_lightning.estimators import gradient_audit as gradient_audit
from deq_lightning.estimators import jacobian_penalty as jacobian_penalty
from deq_lightning.estimators import spectral_radius as spectral_radius
from deq_lightning.gradients import JFB as JFB
from deq_lightning.gradients import NPG as NPG
from deq_lightning.gradients import UPG as UPG
from deq_lightning.gradients import GradientStrategy as GradientStrategy
from deq_lightning.gradients import Implicit as Implicit
from deq_lightning.gradients import Unrolled as Unrolled
from deq_lightning.models import FPN as FPN
from deq_lightning.models import IGNN as IGNN
from deq_lightning.models import MDEQ as MDEQ
from deq_lightning.models import MON as MON
from deq_lightning.models import DenseFPN as DenseFPN
from deq_lightning.models import DEQTransformer as DEQTransformer
from deq_lightning.models import Equilibrium as Equilibrium
from deq_lightning.models import IGNNGraphClassifier as IGNNGraphClassifier
from deq_lightning.models import IGNNNodeClassifier as IGNNNodeClassifier
from deq_lightning.models import IGNNSkipNodeClassifier as IGNNSkipNodeClassifier
from deq_lightning.models import ImplicitGraphLayer as ImplicitGraphLayer
from deq_lightning.models import ImplicitModel as ImplicitModel
from deq_lightning.models import MDEQSegmentation as MDEQSegmentation
from deq_lightning.models import MONConv as MONConv
from deq_lightning.models import MONMultiTier as MONMultiTier
from deq_lightning.models import Network as Network
from deq_lightning.models import NeuralODE as NeuralODE
from deq_lightning.models import Segment as Segment
from deq_lightning.solvers import GMRES as GMRES
from deq_lightning.solvers import Anderson as Anderson
from deq_lightning.solvers import Broyden as Broyden
from deq_lightning.solvers import FixedPointIteration as FixedPointIteration
from deq_lightning.solvers import NormalCG as NormalCG
from deq_lightning.solvers import Partition as Partition
from deq_lightning.solvers import Solution as Solution
from deq_lightning.solvers import Solver as Solver
from deq_lightning.solvers import Status as Status
from deq_lightning.tasks import CosineToEnd as CosineToEnd
from deq_lightning.tasks import GraphClassification as GraphClassification
from deq_lightning.tasks import ImageClassification as ImageClassification
from deq_lightning.tasks import ImplicitTask as ImplicitTask
from deq_lightning.tasks import NodeClassification as NodeClassification
from deq_lightning.tasks import PolynomialToEnd as PolynomialToEnd
from deq_lightning.tasks import SemanticSegmentation as SemanticSegmentation
from deq_lightning.tasks import StepsToEnd as StepsToEnd

__version__ = version("deq-lightning")
