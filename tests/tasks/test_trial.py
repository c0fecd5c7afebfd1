"""The trial of optimizer and schedule before a run."""

import math
import re
from typing import Any

import pytest
import torch
from pytorch_lightning.cli import ReduceLROnPlateau
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, MultiStepLR, OneCycleLR, PolynomialLR, StepLR

from deq_lightning import MON, CosineToEnd, ImageClassification, PolynomialToEnd, StepsToEnd, WarmupCosineToEnd


def task(optimizer: Any = None, schedule: Any = None) -> ImageClassification:
    return ImageClassification(MON(4, 2, 2), optimizer=optimizer or Adam, lr_scheduler=schedule)


@pytest.mark.parametrize(
    ("one", "given", "message"),
    [
        (Adam, {"lr": math.inf}, "`optimizer.lr` must be finite, got inf."),
        (SGD, {"lr": math.nan}, "`optimizer.lr` must be finite, got nan."),
        (Adam, {"weight_decay": math.inf}, "`optimizer.weight_decay` must be finite, got inf."),
        (Adam, {"eps": math.inf}, "`optimizer.eps` must be finite, got inf."),
        (SGD, {"momentum": math.nan}, "`optimizer.momentum` must be finite, got nan."),
        (Adam, {"lr": -1.0}, "Invalid learning rate: -1.0"),
        (Adam, {"betas": (1.0, 1.0)}, "Invalid beta parameter at index 0: 1.0"),
        (
            Adam,
            {"betas": (0.9,)},
            "`optimizer` must have arguments that it can calculate with, got IndexError: tuple index out of range.",
        ),
    ],
)
def test_an_optimizer_that_could_not_learn_is_refused(one: type, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        task(lambda parameters: one(parameters, **given)).try_optimizer()


def groups(parameters: Any) -> Optimizer:
    first, *rest = parameters
    return SGD([{"params": [first], "lr": 0.0}, {"params": rest}], lr=0.1)


def test_a_part_of_the_network_may_have_no_learning_rate() -> None:
    task(groups).try_optimizer()


@pytest.mark.parametrize(
    ("one", "given", "message"),
    [
        (CosineAnnealingLR, {"T_max": 0}, "`lr_scheduler.T_max` must be 1 or more, got 0."),
        (CosineAnnealingLR, {"T_max": 9, "eta_min": math.nan}, "`lr_scheduler.eta_min` must be finite, got nan."),
        (StepLR, {"step_size": 0}, "`lr_scheduler.step_size` must be 1 or more, got 0."),
        (StepLR, {"step_size": 9, "gamma": math.nan}, "`lr_scheduler.gamma` must be finite, got nan."),
        (StepLR, {"step_size": 9, "gamma": -1.0}, "`lr_scheduler.gamma` must be 0 or more, got -1.0."),
        (ExponentialLR, {"gamma": math.inf}, "`lr_scheduler.gamma` must be finite, got inf."),
        (
            MultiStepLR,
            {"milestones": [5, 3]},
            "`lr_scheduler.milestones` must be ascending, got [5, 3]. Swap its entries.",
        ),
        (
            OneCycleLR,
            {"max_lr": 0.1, "total_steps": 19},
            "`lr_scheduler.total_steps` must be 20 or more, the steps of the run, got 19.",
        ),
        (OneCycleLR, {"max_lr": math.inf, "total_steps": 20}, "`lr_scheduler.max_lr` must be finite, got inf."),
        (
            PolynomialLR,
            {"power": -1.0},
            "`lr_scheduler` must have arguments that it can calculate with, got ZeroDivisionError: 0.0 cannot be "
            "raised to a negative power.",
        ),
        (
            CosineAnnealingLR,
            {"T_max": 2, "eta_min": -1.0},
            "`CosineAnnealingLR` must give learning rates of 0 or more, got -0.45 at step 1 (T_max=2, eta_min=-1.0).",
        ),
        (ReduceLROnPlateau, {"monitor": "x", "factor": -1.0}, "`lr_scheduler.factor` must be 0 or more, got -1.0."),
        (ReduceLROnPlateau, {"monitor": "x", "patience": -1}, "`lr_scheduler.patience` must be 0 or more, got -1."),
        (CosineToEnd, {"eta_min": math.nan}, "`eta_min` must be 0 or more, got nan."),
    ],
)
def test_a_schedule_that_would_fail_later_is_refused(one: type, given: dict[str, Any], message: str) -> None:
    subject = task(lambda parameters: SGD(parameters, lr=0.1), lambda optimizer: one(optimizer, **given))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        subject.try_optimizer(steps=20)


@pytest.mark.parametrize("steps", [None, 1, 20, 5000])
@pytest.mark.parametrize(
    "schedule",
    [
        None,
        CosineToEnd,
        PolynomialToEnd,
        StepsToEnd,
        lambda optimizer: WarmupCosineToEnd(optimizer, warmup_steps=5),  # its first rate is 0
        lambda optimizer: CosineAnnealingLR(optimizer, T_max=20),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=5000),
        lambda optimizer: ReduceLROnPlateau(optimizer, monitor="val_loss"),
    ],
)
def test_the_trial_changes_nothing(schedule: Any, steps: int | None) -> None:
    subject = task(schedule=schedule)
    before = torch.nn.utils.parameters_to_vector(subject.parameters()).clone()
    state = torch.get_rng_state()
    subject.try_optimizer(steps)
    assert torch.equal(torch.nn.utils.parameters_to_vector(subject.parameters()), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in subject.parameters())
