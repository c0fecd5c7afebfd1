"""Strings of bits: the parity, splits and sizes; and what all puzzles share."""

import copy
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.demos.boring_classes import BoringModel
from support.runs import trainer
from torch import Tensor

from deq_lightning import Digits, Mazes, PrefixSums, Puzzles, Sudoku
from deq_lightning.data.errors import SplitError
from deq_lightning.data.order import SeededDraws
from deq_lightning.data.puzzles.base import different, turned
from deq_lightning.samples import PIXELS, PUZZLES, UNLABELLED, Samples

FEW = {"train_size": 60, "val_size": 20, "test_size": 10}
SMALL = {
    "bits": lambda **options: PrefixSums(6, [6, 9], **{**FEW, "train_size": 34}, **options),
    "mazes": lambda **options: Mazes(7, [7, 9], **FEW, **options),
    "sudoku": lambda **options: Sudoku(**FEW, **options),
}
every = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)


def stored(dataset: object) -> tuple[Tensor, Tensor]:
    """Return puzzles and labels as they are held."""
    held = dataset.dataset if isinstance(dataset, SeededDraws) else dataset
    return held.x, held.y


def parts(data: Puzzles) -> list[Tensor]:
    return [stored(part)[0] for part in (data.train_set, data.val_set, *data.test_sets.values())]


def ready(data: Puzzles, stage: str | None = None) -> Puzzles:
    data.setup(stage)
    return data


def test_the_labels_are_the_parities_of_all_bits_so_far() -> None:
    data = ready(PrefixSums(5, [5, 40], train_size=20, val_size=4, test_size=8))
    for part in (data.train_set, data.val_set, *data.test_sets.values()):
        for x, y in part:
            assert x.dtype == torch.float32 and y.dtype == torch.int64 and set(x.unique().tolist()) <= {-1.0, 1.0}
            signs = (-x[0]).cumprod(0)  # one factor of −1 for each bit that is 1
            assert torch.equal(y, ((1 - signs) / 2).long()), (x, y)
    assert data.train_set[0][0].shape == (1, 5) and data.test_sets["40"][0][0].shape == (1, 40)


def test_all_strings_of_a_length_are_used_once() -> None:
    data = ready(PrefixSums(5, [5], train_size=20, val_size=4, test_size=8))
    strings = torch.cat(parts(data)).flatten(1)
    assert len(strings.unique(dim=0)) == 32 and data.split_sizes() == {"train": 20, "val": 4, "test": 8}


def test_bits_are_fair() -> None:
    x, y = stored(ready(PrefixSums(30, [30], train_size=4000, val_size=1, test_size=1)).train_set)
    assert abs(x.float().mean()) < 0.02 and abs(y.float().mean() - 0.5) < 0.02  # 6 standard deviations or more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 5}, "`val_size` + `train_size` must be at most 32, the number of different strings of 5 bits, got "
         "500 + 10000."),
        ({"length": 13, "test_lengths": [13]}, "`test_size` + `val_size` + `train_size` must be at most 8192, the "
         "number of different strings of 13 bits, got 200 + 500 + 10000."),
        ({"test_lengths": [3]}, "`test_size` must be at most 8, the number of different strings of 3 bits, got 200."),
    ],
)  # fmt: skip
def test_too_few_strings(arguments: dict, message: str) -> None:
    with pytest.raises(SplitError) as error:
        PrefixSums(**arguments).setup()
    assert str(error.value) == message


def test_a_length_of_a_test_set_comes_once() -> None:
    with pytest.raises(ValueError, match=r"^`test_lengths` must be different numbers, got \[16, 32, 16\].$"):
        PrefixSums(test_lengths=(16, 32, 16))


# --- what all puzzles share ---


@every
def test_no_puzzle_is_in_two_splits(make: type) -> None:
    data = ready(make())
    counts = [len(part) for part in parts(data)]
    assert counts == [data.train_size, 20, *(10 for _ in data.test_names)]
    keys = {row.numpy().tobytes() for part in parts(data) for row in part}
    assert len(keys) == sum(counts)
    assert data.split_sizes() == {"train": data.train_size, "val": 20, "test": 10 * len(data.test_names)}


@every
def test_the_seed_alone_fixes_the_puzzles(make: type) -> None:
    first = parts(ready(make(seed=3)))
    torch.rand(3), np.random.rand(3)
    for one, two in zip(first, parts(ready(make(seed=3))), strict=True):
        assert torch.equal(one, two)
    assert not any(torch.equal(one, two) for one, two in zip(first, parts(ready(make(seed=4))), strict=True))


@every
def test_each_stage_makes_what_it_needs_and_the_same(make: type) -> None:
    whole, fit, test = ready(make()), ready(make(), "fit"), ready(make(), "test")
    assert not fit.test_sets and fit.split_sizes().keys() == {"train", "val"}
    assert test.train_set is None and test.split_sizes().keys() == {"test"}
    assert [len(part) for part in test.test_sets.values()] == [10] * len(whole.test_names)
    staged = [stored(part)[0] for part in (fit.train_set, fit.val_set, *test.test_sets.values())]
    for one, two in zip(parts(whole), staged, strict=True):
        assert torch.equal(one, two)


@every
def test_what_is_there_is_not_made_again(make: type) -> None:
    data = ready(make(), "fit")
    train = data.train_set
    data.setup("validate")
    data.setup("test")
    tests = dict(data.test_sets)
    data.setup()
    assert data.train_set is train and all(data.test_sets[name] is part for name, part in tests.items())
    copied = pickle.loads(pickle.dumps(copy.deepcopy(data)))  # as processes get it that are spawned
    assert all(torch.equal(one, two) for one, two in zip(parts(copied), parts(data), strict=True))


@every
def test_nothing_is_drawn_from_the_global_streams(make: type) -> None:
    before, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    data = ready(make())
    for loader in (data.train_dataloader(), data.val_dataloader(), *data.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == of_numpy).all()


def epoch(data: Puzzles, number: int) -> list[Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return [part for batch in loader for part in batch]


@every
def test_an_epoch_is_the_same_in_a_new_module(make: type) -> None:
    data = ready(make(batch_size=16))
    before, later = epoch(data, 0), epoch(data, 3)
    assert all(map(torch.equal, later, epoch(ready(make(batch_size=16)), 3)))  # as a run that resumes there
    assert not all(map(torch.equal, before, later))


class Recorder(BoringModel):
    """Writes down the batches of every epoch and test set, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[object, list[Tensor]] = {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.setdefault(self.current_epoch, []).extend(batch)
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.seen["val"] = batch

    def test_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.setdefault(f"test {dataloader_idx}", []).append(batch[0])


def fit(folder: Path, epochs: int, resume: Path | None = None) -> dict[object, list[Tensor]]:
    model, data = Recorder(), Mazes(7, [7, 9], **FEW, batch_size=25)
    run = trainer(folder, max_steps=-1, max_epochs=epochs, enable_checkpointing=False)
    run.fit(model, data, ckpt_path=resume)
    run.save_checkpoint(folder / "last.ckpt")
    run.test(model, data, verbose=False)
    return model.seen


def test_a_resumed_run_sees_the_same_puzzles_and_a_test_all_sets(tmp_path: Path) -> None:
    whole = fit(tmp_path, 3)
    fit(tmp_path, 1)
    rest = fit(tmp_path, 3, tmp_path / "last.ckpt")
    assert set(rest) == {1, 2, "val", "test 0", "test 1"}
    assert all(all(map(torch.equal, rest[name], whole[name])) for name in rest)
    assert not torch.equal(whole[1][0], whole[2][0])
    assert [torch.cat(whole[f"test {index}"]).shape for index in (0, 1)] == [(10, 3, 9, 9), (10, 3, 11, 11)]


@every
def test_a_loader_for_each_test_set(make: type) -> None:
    data = make(eval_batch_size=7)
    with pytest.raises(RuntimeError, match=r".test_sets` is empty. Call `setup\(\)` before asking for a loader."):
        data.test_dataloader()
    data.setup("predict")
    for loaders in (data.test_dataloader(), data.predict_dataloader()):
        assert len(loaders) == len(data.test_names)
        for name, loader in zip(data.test_names, loaders, strict=True):
            batches = list(loader)
            assert [len(x) for x, _ in batches] == [7, 3]
            assert all(map(torch.equal, batches[0][1], stored(data.test_sets[name])[1].long()))


def test_the_names_of_the_test_sets() -> None:
    assert [make().test_names for make in SMALL.values()] == [["6", "9"], ["7", "9"], ["4x4"]]
    assert PrefixSums().test_names == ["16", "32", "64", "128", "512"] and tuple(Digits().test_names) == ()


@pytest.mark.parametrize(
    ("make", "checksum"),
    [
        (lambda: PrefixSums(30, [30], **FEW), "1308d663"),
        (lambda: Mazes(**FEW), "be3920f0"),
        (lambda: Sudoku(**FEW), "26c5d44f"),
        (lambda: Sudoku((2, 3), (14, 18), **FEW), "8fe54eec"),
    ],
    ids=["bits", "mazes", "4x4", "6x6"],
)
def test_every_process_makes_the_same_puzzles(make: type, checksum: str) -> None:
    digest = hashlib.md5()
    for part in parts(ready(make())):
        digest.update(part.numpy().tobytes())
    assert digest.hexdigest()[:8] == checksum


def test_different_ones_are_taken_in_their_order() -> None:
    def stream() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows = np.array([[3], [1], [3], [4], [1], [5], [9]], dtype=np.int8)
        yield rows[:4], -rows[:4]
        yield rows[4:], -rows[4:]

    (first, _), (second, labels) = different(stream(), "rows", {"a": 1, "b": 2}, [np.array([1], dtype=np.int8)])
    assert (first.ravel().tolist(), second.ravel().tolist(), labels.ravel().tolist()) == ([3], [4, 5], [-4, -5])
    with pytest.raises(SplitError, match=r"^`a` \+ `b` must be at most 5, the number of different rows, got 4 \+ 2.$"):
        different(stream(), "rows", {"a": 4, "b": 2})


def test_the_eight_symmetries_of_a_square() -> None:
    square = torch.arange(9).view(3, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seen = {tuple(turned(square[None], square)[1].flatten().tolist()) for _ in range(200)}
        x, y = turned(square[None], square)
    assert len(seen) == 8 and torch.equal(x[0], y)


# --- the description ---


@pytest.mark.parametrize(
    ("samples", "arguments"),
    [
        (PrefixSums().samples, {"in_channels": 1, "dimensions": 1, "positions": 16, "in_features": 16}),
        (Mazes().samples, {"in_channels": 3, "dimensions": 2, "positions": 121, "image_size": 11, "in_features": 363}),
        (
            Mazes(doubled=True).samples,
            {"in_channels": 3, "dimensions": 2, "positions": 576, "image_size": 24, "in_features": 1728},
        ),
        (Samples(PUZZLES, size=(2, 3), classes=2), {"dimensions": 2, "positions": 6}),
    ],
)
def test_sizes_for_networks(samples: Samples, arguments: dict) -> None:
    assert samples.kind == PUZZLES
    assert samples.arguments() == {**arguments, "num_classes": 2}


def test_sizes_of_sudoku_and_of_what_has_no_size() -> None:
    sudoku = Sudoku((2, 3), clues=(14, 18)).samples
    assert sudoku.arguments() == {
        **{"dimensions": 2, "positions": 36, "image_size": 6},
        **{"num_classes": 6, "vocab_size": 7},
    }
    assert Samples(PIXELS, channels=3, classes=19).arguments() == {"in_channels": 3, "num_classes": 19}
    assert Samples(PUZZLES, channels=1, size=(16,)).example().shape == (2, 1, 16)


def test_labels_that_do_not_count_are_those_that_the_loss_ignores() -> None:
    assert torch.nn.CrossEntropyLoss().ignore_index == UNLABELLED
