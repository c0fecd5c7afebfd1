"""ImageNet's layout: geometry of the transforms, splits, seeds, and what is said of defects."""

import csv
import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from support.fake_data import error_of, make_imagenet
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FakeData

from deq_lightning import MDEQ, MNIST, ImageClassification, ImageNet, PredictionWriter
from deq_lightning.cli import main
from deq_lightning.data import DatasetNotFoundError, SplitError

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
CLASSES = ("n01440764", "n02123045")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with 20 training and 6 test images of two classes."""
    make_imagenet(tmp_path, monkeypatch)
    return tmp_path / "imagenet"


def ready(root: Path, **options: object) -> ImageNet:
    data = ImageNet(str(root), **{"image_size": 28, "val_size": 4, "num_workers": 0, **options})
    data.prepare_data()
    data.setup()
    return data


def use(root: Path, pixels: np.ndarray) -> None:
    """Put one image, without loss, in the place of all."""
    for file in root.rglob("*.JPEG"):
        Image.fromarray(pixels).save(file, format="PNG")  # as one of the real files is


def colours(image: Tensor) -> Tensor:
    """Undo the normalisation."""
    return (image * STD + MEAN) * 255


def test_splits_are_disjoint_and_stratified(root: Path) -> None:
    data = ready(root, batch_size=10)
    train, val = data.train_set.dataset.indices, data.val_set.indices
    assert sorted([*train, *val]) == list(range(20))
    for seed in range(10):
        targets = ready(root, seed=seed).val_set
        assert [targets[i][1] for i in range(4)].count(0) == 2
    assert [data.test_set[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert ready(root).val_set.indices == val and ready(root, seed=1).val_set.indices != val
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (10, 3, 28, 28) and x.dtype == torch.float32 and y.dtype == torch.int64


def test_the_test_split_is_the_folder_val(root: Path) -> None:
    data = ready(root)
    assert {Path(path).parts[-3] for path, _ in data.test_set.samples} == {"val"}
    assert {Path(path).parts[-3] for path, _ in data.val_set.dataset.samples} == {"train"}


def test_evaluation_looks_at_the_center_of_the_resized_image(root: Path) -> None:
    rows, columns = np.mgrid[:80, :160]
    use(root, np.stack([columns, 2 * rows, 0 * rows], axis=2).astype(np.uint8))
    data = ready(root)
    # The shorter side of 80 becomes 28 / 0.875 = 32 pixels, so one of these is 2.5 of the file's.
    across = (18 + torch.arange(28) + 0.5) * 2.5 - 0.5
    down = (2 + torch.arange(28) + 0.5) * 2.5 - 0.5
    expected = torch.stack([across.expand(28, 28), 2 * down.expand(28, 28).T, torch.zeros(28, 28)])
    for split in (data.val_set, data.test_set):
        assert (colours(split[0][0]) - expected).abs().max() < 0.51  # bytes are rounded


def boxes(data: ImageNet) -> Tensor:
    """Return left, top, width and height of the box that each training image of a ramp shows; flipped, width < 0."""
    shown = torch.stack([colours(data.train_set[i][0]) for i in range(len(data.train_set))])
    inner = shown[:, :2, 6:22, 6:22]  # away from the border, where a ramp stays a ramp
    across, down = inner[:, 0].mean(dim=1), inner[:, 1].mean(dim=2)
    steps = torch.arange(6.5, 22) / 28
    design = torch.stack([steps, torch.ones(16)], dim=1)
    width, left = torch.linalg.lstsq(design, across.T + 0.5).solution
    height, top = torch.linalg.lstsq(design, down.T + 0.5).solution
    return torch.stack([left, top, width, height], dim=1)


def test_training_crops_keep_to_area_and_aspect(root: Path) -> None:
    rows, columns = np.mgrid[:200, :250]
    use(root, np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))
    area, aspect = (0.3, 0.6), (0.8, 1.25)
    data = ready(root, crop_area=area, crop_aspect=aspect)
    found = []
    for epoch in range(10):
        data.train_set.epoch.fill_(epoch)
        found.append(boxes(data))
    left, top, width, height = torch.cat(found).T
    flipped = width < 0
    assert 40 < flipped.sum() < 120  # of 160
    left = torch.where(flipped, left + width, left)
    assert ((left > -1) & (left + width.abs() < 251) & (top > -1) & (top + height < 201)).all()
    shares, aspects = width.abs() * height / (200 * 250), width.abs() / height
    assert area[0] - 0.01 < shares.min() < 0.35 and 0.55 < shares.max() < area[1] + 0.01
    assert aspect[0] - 0.02 < aspects.min() < 0.9 and 1.1 < aspects.max() < aspect[1] + 0.02


def passes(data: ImageNet, *epochs: int) -> list[Tensor]:
    loader = data.train_dataloader()
    result = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        result.append(torch.cat([x for x, _ in loader]))
    return result


def test_augmentation_depends_on_seed_and_epoch_alone(root: Path) -> None:
    before = torch.get_rng_state()
    first, second = passes(ready(root, batch_size=5), 0, 1)
    late, early = passes(ready(root, batch_size=4, num_workers=2), 1, 0)
    assert torch.equal(first, early) and torch.equal(second, late)
    assert not torch.equal(first, passes(ready(root, seed=1), 0)[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_every_core_loads_batches_ahead(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deq_lightning.data.base.suggested_max_num_workers", lambda devices: 31)
    loader = ready(root, num_workers=None, prefetch_factor=3).train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (31, 3, True)
    assert loader.pin_memory == torch.cuda.is_available()


def message(root: Path, fault: str) -> str:
    """Return what is said of a fault in the layout."""
    unpack = f"from torchvision.datasets import ImageNet; [ImageNet('{root}', one) for one in ('train', 'val')]"
    return (
        f"`ImageNet` needs images in `{root}/train/CLASS/` and `{root}/val/CLASS/`, of the same classes; {fault}. "
        "Set `root=PATH` to name the folder that holds them, or put ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from https://image-net.org/download into "
        f'`{root}/` and run `python -c "{unpack}"`, which unpacks `train` and `val` where they do not exist.'
    )


def flatten(root: Path) -> None:
    """Lay the test images out as their archive does."""
    for file in sorted((root / "val").rglob("*.JPEG")):
        file.rename(root / "val" / file.name)
    for name in CLASSES:
        (root / "val" / name).rmdir()


def empty(root: Path) -> None:
    folder = root / "train" / CLASSES[1]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("soon")


DEFECTS = {
    "there is no folder `{root}/train`": shutil.rmtree,
    "there is no folder `{root}/val`": lambda root: shutil.rmtree(root / "val"),
    "`{root}/val` has no folders, one for each class, in it": flatten,
    "`{root}/train/n02123045` holds no images": empty,
    "`n02123045`, one of 1 such folders, is in `train` only": lambda root: shutil.rmtree(root / "val" / CLASSES[1]),
    "there is one class, `n01440764`, and two or more are needed": lambda root: [
        shutil.rmtree(root / split / CLASSES[1]) for split in ("train", "val")
    ],
    "`n03`, one of 1 such folders, is in `val` only": lambda root: shutil.copytree(
        root / "val" / CLASSES[1], root / "val" / "n03"
    ),
}


@pytest.mark.parametrize("fault", DEFECTS)
def test_a_wrong_layout_is_refused_before_training(root: Path, fault: str) -> None:
    DEFECTS[fault](root)
    with pytest.raises(DatasetNotFoundError) as caught:
        ImageNet(str(root)).prepare_data()
    assert str(caught.value) == message(root, fault.format(root=root))


@pytest.mark.parametrize("content", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>404"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_is_named_in_one_line(root: Path, content: object, num_workers: int) -> None:
    file = root / "val" / CLASSES[1] / f"{CLASSES[1]}_0.JPEG"
    file.write_bytes(content(file.read_bytes()))
    text = str(error_of(ready(root, num_workers=num_workers).test_dataloader(), DatasetNotFoundError))
    assert text.startswith(f"`{file}` cannot be read, it is damaged or cut short (")
    assert text.endswith("Unpack or copy that file again.") and "\n" not in text


def test_a_damaged_file_ends_the_command_line_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in root.rglob("*.JPEG"):
        os.truncate(file, 1000)
    monkeypatch.chdir(root)
    with pytest.raises(SystemExit) as caught:
        main(
            [
                *("fit", "--config", "imagenet_upg_small", "--data.root", ".", "--data.val_size", "4"),
                *("--data.batch_size", "2", "--data.num_workers", "0", "--data.image_size", "32"),
                *("--model.net.channels", "[8]", "--model.net.head_channels", "[4]"),
                *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
            ]
        )
    assert caught.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(errors) == 1 and errors[0].startswith("error: `train/n0") and "truncated" in errors[0]


def test_names_that_would_move_the_cursor_are_escaped(root: Path) -> None:
    (root / "train" / "n0\x1b[2J\u202e").mkdir()
    with pytest.raises(DatasetNotFoundError) as caught:
        ImageNet(str(root)).prepare_data()
    assert f"`{root}/train/n0\\x1b[2J\\u202e` holds no images" in str(caught.value)
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "size", "words"),
    [
        ((24, 24), 224, "of 24x24 pixels to 224x224, 87 times as many. Set `image_size=24`"),
        ((20, 30), 60, "of 20x30 pixels to 60x90, 9 times as many. Set `image_size=20`"),
        ((24, 24), 48, "of 24x24 pixels to 48x48, 4 times as many. Set `image_size=24`"),
        ((24, 24), 47, None),
        ((40, 60), 28, None),
    ],
)
def test_enlarged_images_are_said_once(root: Path, shape: tuple[int, int], size: int, words: str | None) -> None:
    use(root, np.zeros((*shape, 3), np.uint8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ready(root, image_size=size)
    said = [str(one.message) for one in caught if "enlarges" in str(one.message)]
    assert said == ([f"`ImageNet` enlarges images {words} to compute with those that there are."] if words else [])


class Failing(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise SplitError("one line: with a colon")


def test_an_error_of_a_worker_keeps_its_class_and_its_line() -> None:
    error = error_of(DataLoader(Failing(), num_workers=1), SplitError)
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "one line: with a colon"


def test_a_split_that_does_not_fit_says_what_to_type(root: Path) -> None:
    for val_size in (1, 19):
        with pytest.raises(SplitError, match=rf"must be 2 to 18, .* 20 training .* got {val_size}.*val_size=2`"):
            ready(root, val_size=val_size)
    for number in range(1, 10):
        (root / "train" / CLASSES[0] / f"{CLASSES[0]}_{number}.JPEG").unlink()
    with pytest.raises(SplitError, match=r"each of the classes .* must have 2 training images or more.* one has 1"):
        ready(root)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_size": 0}, "`image_size` must be 1 or more, got 0"),
        ({"crop_area": (0.5, 0.1)}, r"`crop_area` must be ascending, got \[0.5, 0.1\]"),
        ({"crop_area": (0.5, 1.1)}, "`crop_area`"),
        ({"crop_aspect": (0, 1)}, "`crop_aspect` must be above 0, got"),
        ({"val_size": 0}, "`val_size` must be 1 or more, got 0"),
        ({"prefetch_factor": 0}, "`prefetch_factor` must be 1 or more, got 0"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ImageNet(**options)


@pytest.mark.filterwarnings("ignore")
def test_edges_predictions_name_file_and_class(root: Path) -> None:
    data, table = ready(root, eval_batch_size=4), root.parent / "table.csv"
    task = ImageClassification(MDEQ(num_classes=2, channels=(4,), groups=2, head_channels=(2,), downsample=1))
    writer = PredictionWriter(str(table))
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[writer])
    trainer.predict(task, data, return_predictions=False)
    rows = list(csv.DictReader(table.open()))
    assert list(rows[0])[:2] == ["index", "file"] and list(rows[0])[-1] == "class"
    assert [row["file"] for row in rows] == [os.path.relpath(path, root) for path, _ in data.test_set.samples]
    assert [row["class"] for row in rows] == [CLASSES[int(row["prediction"])] for row in rows]


def test_edges_names_of_other_data() -> None:
    data = MNIST()
    data.test_set = Subset(FakeData(2), [0])
    assert data.class_names is None
    data.test_set.dataset.classes = ["zero", "one"]
    assert data.class_names == ["zero", "one"] and data.file_names is None
