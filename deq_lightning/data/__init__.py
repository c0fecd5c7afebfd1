"""Lightning data modules, one family a file."""

import warnings

with warnings.catch_warnings():  # of what PyTorch Geometric calls while it is imported (2.8 with torch 2.15)
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    import torch_geometric as torch_geometric

from deq_lightning.data.base import DataError as DataError
from deq_lightning.data.base import DataModule as DataModule
from deq_lightning.data.base import DatasetNotFoundError as DatasetNotFoundError
from deq_lightning.data.base import SplitError as SplitError
from deq_lightning.data.cityscapes import Cityscapes as Cityscapes
from deq_lightning.data.digits import Digits as Digits
from deq_lightning.data.graphs import TUGraphs as TUGraphs
from deq_lightning.data.imagenet import ImageNet as ImageNet
from deq_lightning.data.nodes import PPI as PPI
from deq_lightning.data.nodes import Chains as Chains
from deq_lightning.data.nodes import KarateClub as KarateClub
from deq_lightning.data.python_docs import PythonDocs as PythonDocs
from deq_lightning.data.streams import StreamBatch as StreamBatch
from deq_lightning.data.text import TextDataModule as TextDataModule
from deq_lightning.data.vision import CIFAR10 as CIFAR10
from deq_lightning.data.vision import MNIST as MNIST
from deq_lightning.data.vision import SVHN as SVHN
from deq_lightning.data.vocabulary import Vocabulary as Vocabulary
from deq_lightning.data.wikitext import WikiText2 as WikiText2
from deq_lightning.data.wikitext import WikiText103 as WikiText103
