"""The dots move as they are labelled, and what is random is as random as it is said to be."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deq_lightning import RandomDots
from deq_lightning.samples import IMAGES, Samples

MOVES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "right": lambda frame, steps: torch.roll(frame, steps, dims=-1),
    "left": lambda frame, steps: torch.roll(frame, -steps, dims=-1),
    "down": lambda frame, steps: torch.roll(frame, steps, dims=-2),
    "up": lambda frame, steps: torch.roll(frame, -steps, dims=-2),
}
FEW = {"train_size": 300, "val_size": 200, "test_size": 400}


def ready(**arguments: object) -> RandomDots:
    data = RandomDots(**{"size": 12, "max_shift": 5, **FEW, **arguments})
    data.setup()
    return data


def followed(data: RandomDots) -> Tensor:
    """Return where the first frames of the test images would be if no pixel were drawn anew."""
    x, y = data.test_set.tensors
    moves = [MOVES[data.class_names[label]] for label in y.tolist()]
    return torch.stack([move(*one) for move, *one in zip(moves, x[:, 0], data.sample_columns["shift"], strict=True)])


def assert_share(happened: Tensor, probability: float) -> None:
    deviation = math.sqrt(probability * (1 - probability) / happened.numel())
    assert abs(happened.double().mean() - probability) <= 5 * deviation


@pytest.mark.parametrize("size", [11, 12])
def test_coherent_dots_move_as_labelled(size: int) -> None:
    data = ready(size=size, coherence=1)
    assert torch.equal(data.test_set.tensors[0][:, 1], followed(data))


@pytest.mark.parametrize(("coherence", "density"), [(0, 0.5), (0.9, 0.5), (0.6, 0.2), (1, 0.7)])
def test_the_rest_is_drawn_anew(coherence: float, density: float) -> None:
    data = ready(coherence=coherence, density=density)
    first, second = data.test_set.tensors[0].unbind(1)
    by_chance = density**2 + (1 - density) ** 2
    assert_share(second == followed(data), coherence + (1 - coherence) * by_chance)
    for frame in (first, second):
        assert_share(frame == 1, density)


def test_directions_and_shifts_are_uniform() -> None:
    data = ready(test_size=4000)
    shifts, directions = torch.tensor(data.sample_columns["shift"]), data.test_set.tensors[1]
    assert shifts.unique().tolist() == [1, 2, 3, 4, 5] and directions.unique().tolist() == [0, 1, 2, 3]
    for direction in range(4):
        assert_share(directions == direction, 1 / 4)
        for shift in range(1, 6):
            assert_share((directions == direction) & (shifts == shift), 1 / 20)


def test_the_items_are_as_described() -> None:
    data = ready()
    x, y = next(iter(data.train_dataloader()))
    assert data.samples == Samples(IMAGES, channels=2, size=(12, 12), classes=4)
    assert x.shape == (64, 2, 12, 12) and x.dtype == torch.float32 and x.unique().tolist() == [-1, 1]
    assert y.shape == (64,) and y.dtype == torch.int64
    assert data.split_sizes() == {"train": 300, "val": 200, "test": 400}


def test_the_seed_alone_fixes_the_images() -> None:
    one, same, other = (ready(seed=seed) for seed in (3, 3, 4))
    for split in ("train_set", "val_set", "test_set"):
        first, second, third = (getattr(data, split).tensors for data in (one, same, other))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
        assert not torch.equal(first[0], third[0])
    assert one.sample_columns == same.sample_columns != other.sample_columns


def test_no_split_depends_on_the_size_of_another_and_none_are_alike() -> None:
    few, many = ready(train_size=10), ready(train_size=700)
    for split in ("val_set", "test_set"):
        assert torch.equal(getattr(few, split).tensors[0], getattr(many, split).tensors[0])
    assert torch.equal(few.train_set.tensors[0], many.train_set.tensors[0][:10])
    images = torch.cat([part.tensors[0] for part in (many.train_set, many.val_set, many.test_set)])
    assert len(images.flatten(1).unique(dim=0)) == 700 + 200 + 400


def test_a_stage_draws_what_it_needs() -> None:
    data = RandomDots(**FEW)
    assert data.sample_columns == {}
    data.setup("fit")
    assert data.test_set is None and data.sample_columns == {} and len(data.train_set) == 300
    data.setup("predict")
    assert torch.equal(data.test_set.tensors[0], ready(size=24, max_shift=6).test_set.tensors[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"max_shift": 12},
            "`size` must be above 24, twice `max_shift`, for opposite directions to differ, got 24. "
            "Set `data.max_shift=11` or less, or a larger `size`.",
        ),
        ({"size": 2, "max_shift": 1}, "`size` must be 3 or more, got 2."),
        ({"coherence": 1.1}, "`coherence` must be in [0, 1], got 1.1."),
        ({"density": 1}, "`density` must be in (0, 1), got 1. At its ends all pixels are the same."),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RandomDots(**arguments)
