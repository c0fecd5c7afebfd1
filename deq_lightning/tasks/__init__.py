"""LightningModules: a model, a loss, metrics."""

from deq_lightning.tasks.base import ImplicitTask as ImplicitTask
from deq_lightning.tasks.classification import ImageClassification as ImageClassification
from deq_lightning.tasks.graphs import GraphClassification as GraphClassification
from deq_lightning.tasks.graphs import NodeClassification as NodeClassification
from deq_lightning.tasks.language import LanguageModeling as LanguageModeling
from deq_lightning.tasks.schedules import CosineToEnd as CosineToEnd
from deq_lightning.tasks.schedules import PolynomialToEnd as PolynomialToEnd
from deq_lightning.tasks.schedules import StepsToEnd as StepsToEnd
from deq_lightning.tasks.schedules import WarmupCosineToEnd as WarmupCosineToEnd
from deq_lightning.tasks.segmentation import SemanticSegmentation as SemanticSegmentation
