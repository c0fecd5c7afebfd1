"""Which classes the command line knows by name."""

import inspect
import re
from collections.abc import Iterable
from functools import cache
from types import ModuleType

import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import LRScheduler

import deq_lightning
from deq_lightning.estimators import JacobianPenalty
from deq_lightning.gradients import GradientStrategy
from deq_lightning.models import Network
from deq_lightning.solvers import NormalCG, Solver
from deq_lightning.tasks import ImplicitTask


def load_named(texts: Iterable[str]) -> None:
    """Import the public classes that are named anywhere in some texts.

    jsonargparse finds a class by its bare name among the subclasses of its base, and so only if it has been imported.
    """
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    for name in words.intersection(dir(deq_lightning)):
        getattr(deq_lightning, name)


@cache
def families() -> dict[str, list[type]]:
    """Return the keys of classes on the command line, each with the public classes it may name; imports them all."""
    return {
        "model": _family(ImplicitTask),
        "net": _family(Network),
        "data": _family(pl.LightningDataModule),
        "gradient": _family(GradientStrategy),
        "solver": [one for one in _family(Solver) if one is not NormalCG],  # that one is for adjoint systems alone
        "adjoint_solver": _family(Solver),
        "penalty": _family(JacobianPenalty),
        "optimizer": _subclasses(torch.optim, torch.optim.Optimizer),
        "lr_scheduler": [*_family(LRScheduler), *_subclasses(torch.optim.lr_scheduler, LRScheduler)],
    }


def _subclasses(module: ModuleType, base: type) -> list[type]:
    """Return the public classes of a module that derive from `base`."""
    classes = (one for name, one in vars(module).items() if name[0] != "_" and inspect.isclass(one))
    return [one for one in classes if issubclass(one, base) and one is not base]


def _family(base: type) -> list[type]:
    """Return the public classes that may be named where a `base` is wanted."""
    public = (getattr(deq_lightning, name) for name in dir(deq_lightning))
    return [one for one in public if inspect.isclass(one) and issubclass(one, base) and not inspect.isabstract(one)]
