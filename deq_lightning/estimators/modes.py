"""Temporary modes in which an equilibrium is examined."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from deq_lightning.models import ImplicitModel


@contextmanager
def differentiable() -> Iterator[None]:
    """Turn gradients on, even under `no_grad` and `inference_mode`; what f uses must be made outside the latter."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode temporarily."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def solving(module: nn.Module, **changes: Any) -> Iterator[None]:
    """Change settings of the solvers of all implicit models in the module temporarily.

    Args:
        module: the module that holds the models.
        changes: attributes of a solver; `eval_max_steps=None` solves in evaluation as long as in training.
    """
    solvers = {model: model.solver for model in module.modules() if isinstance(model, ImplicitModel)}
    for model, solver in solvers.items():
        model.solver = solver.changed(**changes)
    try:
        yield
    finally:
        for model, solver in solvers.items():
            model.solver = solver
