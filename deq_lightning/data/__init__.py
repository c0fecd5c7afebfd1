"""Lightning data modules, one family a file."""

from deq_lightning.data.base import DataError as DataError
from deq_lightning.data.base import DatasetNotFoundError as DatasetNotFoundError
from deq_lightning.data.base import ImageDataModule as ImageDataModule
from deq_lightning.data.base import SplitError as SplitError
from deq_lightning.data.cityscapes import Cityscapes as Cityscapes
from deq_lightning.data.digits import Digits as Digits
from deq_lightning.data.imagenet import ImageNet as ImageNet
from deq_lightning.data.vision import CIFAR10 as CIFAR10
from deq_lightning.data.vision import MNIST as MNIST
from deq_lightning.data.vision import SVHN as SVHN
