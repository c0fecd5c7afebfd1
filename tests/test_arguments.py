"""Every number and every choice that a public class takes is checked by its constructor, in the same words."""

import dataclasses
import inspect
import math
import re
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

import deq_lightning
from deq_lightning import (
    MDEQ,
    MIND,
    MON,
    Anderson,
    Arrays,
    Broyden,
    Degraded,
    DEQTransformer,
    Digits,
    GeometricDataset,
    Graphs,
    ImageFolder,
    ImplicitGraphLayer,
    LanguageModeling,
    MDEQSegmentation,
    MINDTransformer,
    RecursiveReasoner,
    Table,
    TextFiles,
    jacobian_penalty,
    spectral_radius,
)

REFUSED = {  # of each argument, the nearest value that is too small or outside its interval
    "alpha": 0.0,
    "atol": -1e-9,
    "attention_dropout": 1.0,
    "augment_channels": -1,
    "batch_size": 0,
    "box": 1,
    "chains_per_class": 0,
    "channels": 0,
    "check_every": 0,
    "class_weights": 0.0,
    "classes": 1,
    "beta": 1.0,
    "clues": 0,
    "coherence": -1e-9,
    "continue_words": 0,
    "crop_size": 0,
    "crop_area": 0.0,
    "crop_aspect": 0.0,
    "cutoffs": 0,
    "damping": 0.0,
    "density": 0.0,
    "depth": 0,
    "div_val": 0,
    "downsample": -1,
    "dropout": 1.0,
    "embedding_scale": 0.0,
    "estimate_every": -1,
    "eta_min": -1e-9,
    "eval_batch_size": 0,
    "eval_max_steps": 0,
    "eval_segment_length": 0,
    "expansion": 0,
    "features": 0,
    "final_channels": 0,
    "first_batch": -1,
    "fallback": 0.9,
    "fold": -1,
    "folds": 1,
    "frequency": 0.0,
    "gamma": 0.0,
    "groups": 0,
    "head_channels": 0,
    "heads": 0,
    "history": 0,
    "image_size": 0,
    "in_channels": 0,
    "in_features": 0,
    "init_gain": 0.0,
    "init_std": 0.0,
    "inner_width": 0,
    "k": 0,
    "kappa": 0.0,
    "latent_blocks": 0,
    "length": 0,
    "max_alpha": 0.0,
    "max_shift": 0,
    "max_steps": 0,
    "memory_length": -1,
    "min_alpha": 0.0,
    "monotonicity": 0.0,
    "noise": -1e-09,
    "num_classes": 0,
    "num_workers": -1,
    "p": 0.0,
    "parts": 0.0,
    "perron": 0.0,
    "power": -1e-9,
    "pretrain_steps": -1,
    "probes": 0,
    "ridge": -1e-9,
    "rtol": -1e-9,
    "samples": 0,
    "scale": 0.0,
    "seed": -1,
    "segment_length": 0,
    "size": 4,
    "steps": 0,
    "targets": 0,
    "temperature": -1e-9,
    "test_lengths": 0,
    "test_sizes": 4,
    "train_grids": 0,
    "train_size": 0,
    "unroll_steps": 0,
    "val_size": 0,
    "test_size": 0,
    "vocab_size": 0,
    "warmup_steps": -1,
    "weight": -1e-9,
    "width": 0,
    "widths": 0,
    "save_every": 0,
    "patience": 0,
    "diverged_share": -1e-09,
    "decay": 0.0,
    "min_steps": 0,
    "random_start": -1e-09,
    "start_std": -1e-09,
    "positions": 0,
    "layers": 0,
    "inner_cycles": 0,
    "multiple": 0,
    "prefix": -1,
    "segments": 0,
    "eval_segments": 0,
    "halting_weight": 0.0,
    "cost_weight": -1e-9,
    "iterations_weight": -1e-9,
    "share_weight": -1e-9,
    "layers_weight": -1e-9,
    "warmup_epochs": -1,
    "pooling": 0,
    "head_width": 0,
    "introspection_widths": 0,
    "threshold": 0.0,
    "thresholds": -1e-9,
    "explore": -1e-09,
    "std": 0.0,
    "kernel_size": 0,
    "missing": -1e-09,
    "factor": 0,
    "ssim_std": 0.0,
    "choice_temperature": 0.0,
    "final_choice_temperature": 0.0,
}
MAY_BE_EMPTY = {"cutoffs", "introspection_widths", "thresholds"}
SMALL = {  # what must be given, and what keeps the networks of millions of parameters small
    GeometricDataset: {"name": "FakeDataset"},
    Graphs: {"root": "graphs"},
    ImageFolder: {"root": "pictures"},
    Degraded: {"images": Digits()},
    TextFiles: {"root": "texts"},
    Table: {"path": "rows.csv", "target": "y"},
    Arrays: {"path": "rows.npz"},
    MDEQ: {"channels": [8], "head_channels": [2], "groups": 2},
    MDEQSegmentation: {"channels": [8], "groups": 2},
    RecursiveReasoner: {"vocab_size": 5, "num_classes": 4, "positions": 16, "width": 16, "multiple": 1},
    MIND: {"widths": [4, 4, 4], "head_width": 4, "introspection_widths": []},
    MINDTransformer: {"vocab_size": 20, "width": 8, "heads": 2, "inner_width": 8, "layers": 1},
    DEQTransformer: {"vocab_size": 20, "width": 8, "heads": 2, "inner_width": 8, "cutoffs": [], "div_val": 1},
}
NUMBERS = {int: [2.5, 10**30], float: [-math.inf]}


def classes() -> list[type]:
    public = [getattr(deq_lightning, name) for name in deq_lightning.__all__]
    made_here = [one for one in public if isinstance(one, type) and not inspect.isabstract(one)]
    return [one for one in made_here if not (issubclass(one, tuple | int) or dataclasses.is_dataclass(one))]


def bad_values(hint: Any, name: str) -> list[Any]:
    """Return what an argument of this type must not be; nothing for an argument that is no number and no choice."""
    kinds = {kind for kind in (get_args(hint) if NoneType in get_args(hint) else (hint,)) if kind is not NoneType}
    (kind,) = kinds if len(kinds) == 1 else (None,)
    if kinds == {int, float} or kind == int | float:  # a number of samples or a share
        return [REFUSED[name], "3", True, math.nan, math.inf, 2.5, -0.5]
    if get_origin(kind) is Literal:
        return ["", "unknown", *([] if NoneType in get_args(hint) else [None])]
    if kind in NUMBERS:
        none = [] if NoneType in get_args(hint) else [None]
        lists = [[1], []] if kind is int else []
        return [REFUSED[name], "3", True, math.nan, math.inf, *NUMBERS[kind], *lists, *none]
    if get_args(kind) and get_args(kind)[0] in NUMBERS and get_origin(kind) is not dict:
        entries = [[one] for one in bad_values(get_args(kind)[0], name)]  # lists of lists among them
        return [*entries, 3] if name in MAY_BE_EMPTY else [*entries, [], 3]
    return []


def arguments() -> list[tuple[type, str, list[Any]]]:
    hints = [(one, get_type_hints(one.__init__)) for one in classes()]
    every = [(one, name, bad_values(hint, name)) for one, types in hints for name, hint in types.items()]
    return [(one, name, values) for one, name, values in every if values]


def required(one: type) -> dict[str, Any]:
    parameters = inspect.signature(one).parameters
    if "optimizer" in parameters and "net" not in parameters:
        return {"optimizer": torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)}
    needed = {"in_features": 2, "width": 2} if one is ImplicitGraphLayer else SMALL.get(one, {})
    return {"net": MON(4, 2, 2)} if "net" in parameters else dict(needed)


@pytest.mark.parametrize(
    ("one", "name", "values"), [pytest.param(*a, id=f"{a[0].__name__}-{a[1]}") for a in arguments()]
)
def test_a_constructor_refuses_what_cannot_work(one: type, name: str, values: list[Any]) -> None:
    for bad in values:
        with pytest.raises(ValueError, match=f"`{name}` must "):
            one(**{**required(one), name: bad})


def test_the_arguments_are_those_of_all_families() -> None:
    """So that the parameters of the test above cannot become few without anybody noticing."""
    assert {MDEQ, Anderson, LanguageModeling} <= {one for one, _, _ in arguments()}
    assert {name for _, name, _ in arguments()} >= REFUSED.keys()


@pytest.mark.parametrize("bad", [0, 2.5, True, "3", None, math.nan, math.inf])
def test_the_estimators_refuse_what_cannot_work(bad: Any) -> None:
    for estimate, name in ((jacobian_penalty, "probes"), (spectral_radius, "steps")):
        with pytest.raises(ValueError, match=f"`{name}` must be "):
            estimate(torch.tanh, torch.zeros(1, 2), bad)


@pytest.mark.parametrize(
    ("one", "given", "message"),
    [
        (Anderson, {"max_steps": 7.5}, "`max_steps` must be a whole number, got 7.5."),
        (Anderson, {"max_steps": True}, "`max_steps` must be a whole number, got True."),
        (Anderson, {"max_steps": "3"}, "`max_steps` must be a whole number, got '3'."),
        (Anderson, {"max_steps": 2**31}, "`max_steps` must be 2147483647 or less, got 2147483648."),
        (
            Anderson,
            {"rtol": math.inf},
            "`rtol` must be in [0, 1), got inf. At 1 a solve would end where it starts.",
        ),
        (Anderson, {"rtol": 1}, "`rtol` must be in [0, 1), got 1. At 1 a solve would end where it starts."),
        (Anderson, {"atol": math.inf}, "`atol` must be finite, got inf."),
        (Anderson, {"atol": None}, "`atol` must be a number, got None."),
        (MDEQ, {"channels": [0, 0]}, "`channels` must be 1 or more, got [0, 0]."),
        (MDEQ, {"channels": []}, "`channels` must have one entry or more, got []."),
        (MDEQ, {"channels": 8}, "`channels` must be a list, got 8."),
        (MDEQ, {"num_classes": 10**8}, "`num_classes` must be 10000000 or less, got 100000000."),
        (
            MDEQ,
            {"init_std": math.nan},
            "`init_std` must be above 0, got nan. For PyTorch's own pass `net.init_std=None`.",
        ),
    ],
)
def test_the_refusal_says_what_must_hold_and_what_came(one: type, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        one(**given)


@pytest.mark.parametrize("solver", [Anderson, Broyden])
def test_a_history_is_never_longer_than_the_budget(solver: type) -> None:
    _, memory = solver(max_steps=5, rtol=0, history=10**8).run(torch.tanh, torch.ones(1, 2))
    assert memory.length <= 5
