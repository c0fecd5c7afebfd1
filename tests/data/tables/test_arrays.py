"""Arrays in files: mapped, standardised, refused."""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from deq_lightning import Arrays
from deq_lightning.data.errors import DataError
from deq_lightning.data.tables import scaling
from deq_lightning.samples import IMAGE_LABELS, IMAGE_NUMBERS, IMAGES, ROW_LABELS, ROW_NUMBERS, ROWS

RANDOM = np.random.RandomState(0)
ROWS_OF_5 = RANDOM.randn(40, 5).astype(np.float32) * [1, 2, 3, 4, 0] + 7
PIXELS = RANDOM.randint(0, 256, (40, 3, 6, 4)).astype(np.uint8)
CLASSES = np.arange(40) % 4


def folder(path: Path, **arrays: np.ndarray) -> str:
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return str(path)


def ready(path: Path, arrays: dict[str, np.ndarray], **arguments) -> Arrays:
    data = Arrays(folder(path, **arrays), **{"num_workers": 0, **arguments})
    data.setup()
    return data


def test_features_are_standardised_by_the_training_rows_in_chunks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(scaling, "CHUNK_BYTES", 3 * ROWS_OF_5[0].nbytes)
    data = ready(tmp_path, {"x": ROWS_OF_5, "y": CLASSES})
    train = ROWS_OF_5[data.train_set.rows].astype(np.float64)
    x = torch.stack([x for x, _ in data.val_set]).numpy()
    std = np.where(train.std(axis=0) > 0, train.std(axis=0), 1)
    np.testing.assert_allclose(x, (ROWS_OF_5[data.val_set.rows] - train.mean(axis=0)) / std, atol=1e-5)
    assert len(data.train_set) + len(data.val_set) + len(data.test_set) == 40
    assert torch.stack([y for _, y in data.test_set]).bincount().tolist() == [2, 2, 2, 2]


def test_images_are_standardised_by_channel_and_bytes_are_shares_of_255(tmp_path: Path) -> None:
    data = ready(tmp_path, {"x": PIXELS, "y": CLASSES})
    images = torch.stack([x for x, _ in data.train_set]).double()
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3), correction=0), torch.ones(3).double())
    plain = ready(tmp_path, {}, normalize=False)
    row = plain.train_set.rows[0]
    torch.testing.assert_close(plain.train_set[0][0], torch.as_tensor(PIXELS[row]) / 255)
    assert plain.samples.arguments() == {
        **{"in_channels": 3, "dimensions": 2, "positions": 24, "in_features": 72, "num_classes": 4}
    }


@pytest.mark.parametrize(
    ("y", "row", "image", "size"),
    [
        (CLASSES, ROWS, IMAGES, 4),
        (CLASSES > 1, ROWS, IMAGES, 2),
        (RANDOM.randn(40), ROW_NUMBERS, IMAGE_NUMBERS, 1),
        (RANDOM.randn(40, 2), ROW_NUMBERS, IMAGE_NUMBERS, 2),
        (RANDOM.rand(40, 3) > 0.5, ROW_LABELS, IMAGE_LABELS, 3),
    ],
)
def test_what_targets_mean(y: np.ndarray, row: str, image: str, size: int, tmp_path: Path) -> None:
    rows, images = ready(tmp_path, {"x": ROWS_OF_5, "y": y}), tmp_path / "images"
    images.mkdir()
    pictures = ready(images, {"x": PIXELS, "y": y})
    assert (rows.samples.kind, pictures.samples.kind) == (row, image)
    assert rows.samples.arguments()["num_classes"] == pictures.samples.arguments()["num_classes"] == size
    assert rows.train_set[0][1].shape == (() if "a class" in row else (size,))
    expected = y[rows.train_set.rows[0]]
    assert np.allclose(rows.train_set[0][1], expected)


def test_a_large_array_stays_in_its_file(tmp_path: Path) -> None:
    shape = (1000, 3, 64, 64)  # 49 MB
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=shape)
    x[::2, 0] = 1
    del x
    folder(tmp_path, y=np.arange(1000) % 4)
    tracemalloc.start()
    data = Arrays(str(tmp_path), num_workers=0, batch_size=8)
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    pickled = len(pickle.dumps(data.train_set))  # what processes that are spawned get
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(data.train_set.x.array, np.memmap)
    assert x.shape == (8, *shape[1:]) and len(y) == 8
    assert pickled < 100_000 and peak < 2 * np.prod(shape)  # half of its bytes
    again = pickle.loads(pickle.dumps(data.train_set))
    assert isinstance(again.x.array, np.memmap) and torch.equal(again[5][0], data.train_set[5][0])


def test_splits_by_name(tmp_path: Path) -> None:
    named = {"x_train": ROWS_OF_5, "y_train": CLASSES, "x_test": ROWS_OF_5[:8] + 1, "y_test": CLASSES[:8]}
    np.savez(tmp_path / "data.npz", **named)
    data = Arrays(str(tmp_path / "data.npz"), val_size=8)
    data.setup()
    assert data.split_sizes() == {"train": 32, "val": 8, "test": 8}
    mean = ROWS_OF_5[data.train_set.rows].mean(axis=0)
    assert data.test_set[0][0][1].item() == pytest.approx((ROWS_OF_5[0, 1] + 1 - mean[1]) / data.state_dict()["std"][1])


def test_a_checkpoint_brings_the_statistics_before_any_are_worked_out(tmp_path: Path, monkeypatch) -> None:
    data = ready(tmp_path, {"x": ROWS_OF_5, "y": CLASSES})
    state = data.state_dict()
    assert all(isinstance(value, float) for one in state.values() for value in one)
    monkeypatch.setattr("deq_lightning.data.tables.arrays.fitted", None)  # would be called
    other = ready(tmp_path, {"x": ROWS_OF_5 * 2, "y": CLASSES})
    other.load_state_dict(state)  # as Lightning does it: after `setup`, before the loaders
    (x, _), *_ = other.test_dataloader()
    rows = other.test_set.rows
    expected = (ROWS_OF_5[rows] * 2 - state["mean"]) / state["std"]
    np.testing.assert_allclose(x, expected, rtol=1e-5)
    np.testing.assert_allclose(other.prepare(ROWS_OF_5[rows] * 2), expected, rtol=1e-5)
    with pytest.raises(DataError, match=r"the checkpoint must have the mean and deviation of 5 channels."):
        other.load_state_dict({"mean": [1.0], "std": [1.0]})
    with pytest.raises(DataError, match=r"the rows must be \(rows, 5,\), as the arrays are, got \(2, 4\)."):
        other.prepare(ROWS_OF_5[:2, :4])


BAD = ROWS_OF_5.copy()
BAD[3, 2] = np.nan
NAMED = {"x_train": ROWS_OF_5, "y_train": CLASSES, "x_val": BAD, "y_val": CLASSES}
TESTED = {**NAMED, "x_test": BAD, "y_test": CLASSES}
REFUSED = {
    "nothing": ({}, "must have arrays `x` and `y`, or `x_train` and `y_train`, got none of them."),
    "no y": ({"x": ROWS_OF_5}, "must have `y` beside `x`. Add it."),
    "both": ({"x": ROWS_OF_5, "y": CLASSES, "x_test": BAD, "y_test": CLASSES}, "must not have both `x` and `x_test`"),
    "lengths": ({"x": ROWS_OF_5, "y": CLASSES[:9]}, r"each, as many, got \(40, 5\) and \(9,\)"),
    "no rows": ({"x": ROWS_OF_5[:0], "y": CLASSES[:0]}, "must have one row or more each"),
    "one axis": ({"x": CLASSES, "y": CLASSES}, r"`x` must be numbers \(rows, features\), .* got int64 \(40,\)."),
    "texts": ({"x": ROWS_OF_5.astype(str), "y": CLASSES}, "`x` must be numbers .* got <U32"),
    "objects": ({"x": ROWS_OF_5.astype(object), "y": CLASSES}, "x.npy` cannot be read, .* no plain numbers"),
    "NaN": ({"x": BAD, "y": CLASSES}, "row 3 of `x`, counted from 0, must be finite numbers."),
    "NaN to predict": ({"x": ROWS_OF_5, "y": BAD}, "row 3 of `y`, counted from 0, must be finite numbers."),
    "channels last": ({"x": PIXELS.transpose(0, 2, 3, 1), "y": CLASSES}, "channels before height and width"),
    "counts": ({"x": ROWS_OF_5, "y": PIXELS[:, 0, 0]}, "`y` must be whole numbers .* got uint8"),
    "negative": ({"x": ROWS_OF_5, "y": CLASSES - 1}, "`y` must be classes numbered from 0, got -1."),
    "huge": ({"x": ROWS_OF_5, "y": CLASSES * 10**12}, "the classes must be numbered from 0 without a gap, got 3"),
    "gap": ({"x": ROWS_OF_5, "y": CLASSES * 2}, "every class must have 3 rows or more, .* got 0 of class `1`"),
    "one class": ({"x": ROWS_OF_5, "y": CLASSES * 0}, "the targets must vary over the training rows"),
    "constant": ({"x": ROWS_OF_5, "y": CLASSES * 0.0}, "the targets must vary"),
    "too few": ({"x": ROWS_OF_5[:5], "y": CLASSES[:5]}, "every class must have 3 rows or more"),
    "other classes": ({**TESTED, "y_val": CLASSES * 2}, "the training rows must have every class, got none of 4."),
    "other shapes": ({**NAMED, "x_val": BAD[:, :3]}, "`x_val` must be numbers .*, the same in all splits"),
    "other targets": ({**NAMED, "y_val": CLASSES * 0.5}, "`y_val` must be as `y_train`, int64"),
}


@pytest.mark.parametrize(("arrays", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_a_line(arrays: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as error:
        data = ready(tmp_path, arrays)
        _ = [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()], data.samples
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x04\x95 a pickle"])
def test_a_damaged_file_is_a_line(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no `.*`. Set `path=PATH` to an .npz file"):
        Arrays(str(tmp_path / "data.npz")).prepare_data()
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read, it is damaged or holds no plain numbers"):
        Arrays(str(tmp_path / "data.npz")).prepare_data()
