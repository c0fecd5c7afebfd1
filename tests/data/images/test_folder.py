"""Images of a researcher: layouts, splits, kinds of files, statistics, what is saved, and what is refused."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from support.runs import trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from deq_lightning import MDEQ, ImageClassification, ImageFolder
from deq_lightning.app.checkpoints import restoring
from deq_lightning.data import DataError, SplitError

COUNTS = {"cat": 12, "dog": 8, "eel": 20}


def draw(path: Path, *shape: int, dtype: type = np.uint8, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)).save(path)


def draw_classes(root: Path, counts: dict[str, int], *shape: int, first: int = 0) -> None:
    for name, count in counts.items():
        for number in range(first, first + count):
            draw(root / name / f"{number:02}.png", *shape, seed=1000 * ord(name[0]) + number)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of 40 grey images of 8x6 pixels, of three classes."""
    draw_classes(tmp_path / "pics", COUNTS, 8, 6)
    return tmp_path / "pics"


def ready(root: Path, **options: object) -> ImageFolder:
    data = ImageFolder(str(root), **options)
    data.prepare_data()
    data.setup()
    return data


def parts(data: ImageFolder) -> dict[str, list[str]]:
    """Return the files of each split, from the root."""
    return {
        split: [str(Path(path).relative_to(data.root)) for path in inner(getattr(data, f"{split}_set")).files]
        for split in ("train", "val", "test")
    }


def inner(pictures: object) -> object:
    return getattr(pictures, "dataset", pictures)


def every(loader: DataLoader) -> Tensor:
    return torch.cat([x for x, _ in loader])


# --- layouts and splits


def test_splits_are_disjoint_stratified_and_fixed_by_the_seed(root: Path) -> None:
    (root / "cat" / ".hidden.png").write_bytes(b"")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".thumbnails").mkdir()
    found = parts(ready(root))
    assert {split: dict(Counter(path[:3] for path in some)) for split, some in found.items()} == {
        "train": {"cat": 8, "dog": 5, "eel": 13},
        "val": {"cat": 2, "dog": 1, "eel": 3},
        "test": {"cat": 2, "dog": 2, "eel": 4},
    }
    assert sorted(name for some in found.values() for name in some) == sorted(
        f"{c}/{n:02}.png" for c, count in COUNTS.items() for n in range(count)
    )
    assert parts(ready(root)) == found != parts(ready(root, seed=1))
    data = ready(root, val_size=3, test_size=5)
    assert data.split_sizes() == {"train": 32, "val": 3, "test": 5}
    assert data.class_names == ["cat", "dog", "eel"] and data.file_names == parts(data)["test"]
    assert [data.class_names[y] for _, y in data.test_set] == [name[:3] for name in data.file_names]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "testing"), ("train",)])
def test_folders_of_splits(names: tuple[str, ...], tmp_path: Path) -> None:
    """Those that are missing are taken from the training images, and the others left whole."""
    for name, count in zip(names, (6, 2, 1), strict=False):
        draw_classes(tmp_path / name, {"cat/deep/down": count, "dog": count}, 8, 8)
    data = ready(tmp_path, val_size=2, test_size=4)
    expected = {"train": 12, "val": 4, "test": 2} if len(names) == 3 else {"train": 6, "val": 2, "test": 4}
    assert data.split_sizes() == expected
    places = {split: {path.split("/")[0] for path in some} for split, some in parts(data).items()}
    assert places == {split: {names[-1] if len(names) == 1 else names[i]} for i, split in enumerate(expected)}
    assert data.class_names == ["cat", "dog"]


def test_one_class_may_be_called_train(tmp_path: Path) -> None:
    draw_classes(tmp_path, {"car": 4, "plane": 4, "train": 4}, 8, 8)
    assert ready(tmp_path, val_size=3, test_size=3).class_names == ["car", "plane", "train"]


@pytest.mark.parametrize("place", [".", "elsewhere"])
def test_a_table_of_labels(root: Path, place: str, tmp_path: Path) -> None:
    """Which says the class, whatever the folders are called."""
    table = (root if place == "." else tmp_path) / "labels.csv"
    rows = [f"cat/{n:02}.png,{'odd' if n % 2 else 'even'},{('Train', 'valid', 'test')[n // 4]}" for n in range(12)]
    table.write_text("\ufefffile,label,split,note\n" + "\n".join(rows) + "\n", encoding="utf-8")
    data = ready(root, labels="labels.csv" if place == "." else str(table))
    assert data.class_names == ["even", "odd"]
    found = parts(data)
    assert list(found.values()) == [[f"cat/{n:02}.png" for n in range(i, i + 4)] for i in (0, 4, 8)]
    assert [y for _, y in data.test_set] == [0, 1, 0, 1]
    table.write_text("label,file\n" + "\n".join(f"{n % 2},cat/{n:02}.png" for n in range(12)))
    assert ready(root, labels=str(table), val_size=2, test_size=4).split_sizes() == {"train": 6, "val": 2, "test": 4}


# --- pixels


def normalised(data: ImageFolder, values: Tensor, train: Tensor) -> Tensor:
    mean, std = train.mean(dim=(0, 2, 3)), train.std(dim=(0, 2, 3), correction=0)
    return (values - mean[:, None, None]) / std[:, None, None]


def test_statistics_are_those_of_the_training_images(root: Path) -> None:
    data = ready(root)
    pixels = {
        split: torch.stack([torch.tensor(np.asarray(Image.open(root / name)))[None] / 255 for name in some])
        for split, some in parts(data).items()
    }
    torch.testing.assert_close(every(data.test_dataloader()), normalised(data, pixels["test"], pixels["train"]))
    train = every(data.train_dataloader())
    assert train.mean().abs() < 1e-6 and abs(train.std(correction=0) - 1) < 1e-6
    assert data.samples.shape == (1, 8, 6) == tuple(train.shape[1:]) and data.samples.classes == 3
    for index, name in enumerate(data.file_names):
        assert torch.equal(data.prepare(root / name), data.test_set[index][0])


def test_at_most_2000_training_images_are_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deq_lightning.data.images.pixels.COUNTED", 9)
    data = ready(root)
    chosen = parts(data)["train"][::3]  # of 26
    values = np.stack([np.asarray(Image.open(root / name)) / 255 for name in chosen])
    assert len(chosen) == 9
    assert data.state_dict()["mean"] == pytest.approx([values.mean()]) and data.state_dict()["std"] == pytest.approx(
        [values.std()]
    )


def test_images_that_are_all_black_stay_finite(tmp_path: Path) -> None:
    for n in range(12):
        path = tmp_path / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    assert not every(ready(tmp_path, val_size=2, test_size=2).train_dataloader()).any()


def kinds(root: Path, *images: Image.Image, suffix: str = "png") -> ImageFolder:
    """Return the data of some images, each many times, which all have the same pixels."""
    for n in range(6):
        for number, image in enumerate(images):
            path = root / "ab"[n % 2] / f"{n}_{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return ready(root, val_size=2, test_size=2)


GRADIENT = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
GREY = Image.fromarray(GRADIENT)
COLOUR = Image.merge("RGB", [GREY, GREY, GREY])


@pytest.mark.parametrize(
    ("images", "channels", "suffix"),
    [
        ([GREY], 1, "bmp"),
        ([GREY.convert("LA")], 1, "png"),
        ([COLOUR], 3, "tiff"),
        ([COLOUR.convert("RGBA")], 3, "webp"),
        ([COLOUR, GREY], 3, "png"),
        ([GREY.convert("P")], 3, "gif"),
        ([Image.fromarray(GRADIENT.astype(np.uint16) * 257)], 1, "png"),
        ([Image.fromarray(GRADIENT.astype(np.uint16) * 257), COLOUR], 3, "tif"),
    ],
)
def test_channels_are_those_of_the_files(images: list[Image.Image], channels: int, suffix: str, tmp_path: Path) -> None:
    """Whatever the format, the values are the same; 257 is what 1 of 8 bits is in 16."""
    if suffix == "gif":
        images[0].putpalette([n for n in range(256) for _ in range(3)])
    data = kinds(tmp_path, *images, suffix=suffix)
    assert data.samples.shape == (channels, 5, 5)
    expected = torch.tensor(GRADIENT / 255, dtype=torch.float32).expand(channels, 5, 5)
    for path in inner(data.train_set).files:
        tolerance = 0.02 if suffix == "webp" else 1e-6
        torch.testing.assert_close(data.view.read(path), expected, atol=tolerance, rtol=0)


def test_images_are_resized_only_if_asked(root: Path) -> None:
    draw(root / "cat" / "99.jpg", 16, 40, 3)
    with pytest.raises(DataError) as error:
        ready(root)
    small = root / "cat" / "00.png"
    assert str(error.value) == (
        f"the images in `{root}` have 2 sizes, from 8x6 (`{small}`) to 16x40 (`{root / 'cat' / '99.jpg'}`) pixels. Set "
        "`image_size=N`, such as 6, to resize them: the shorter side becomes N pixels, and the center is used."
    )
    data = ready(root, image_size=4)
    assert data.samples.shape == (3, 4, 4) and every(data.test_dataloader()).shape[1:] == (3, 4, 4)
    grey = Image.open(small).convert("RGB")
    expected = v2.CenterCrop(4)(v2.Resize(4)(v2.functional.to_dtype(v2.functional.pil_to_tensor(grey), scale=True)))
    torch.testing.assert_close(data.view.read(small), expected)


def test_a_new_image_of_another_size_is_refused(root: Path, tmp_path: Path) -> None:
    draw(tmp_path / "new.png", 9, 6)
    with pytest.raises(DataError, match=r"new.png` has 9x6 pixels, and the images of the training have 8x6. Bring"):
        ready(root).prepare(tmp_path / "new.png")


class Invert(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert 0 <= x.min() and x.max() <= 1
        return 1 - x


def test_augmentation_is_of_training_images_alone(root: Path) -> None:
    plain, inverted = ready(root), ready(root, augmentation=[Invert()])
    mean, std = plain.view.moments
    for (x, y), (z, t) in zip(plain.train_set, inverted.train_set, strict=True):
        torch.testing.assert_close(z, (1 - (x * std + mean) - mean) / std, atol=1e-5, rtol=0)
        assert y == t
    assert torch.equal(every(plain.val_dataloader()), every(inverted.val_dataloader()))
    shifted = ready(root, augment=True)
    x, z = plain.train_set[0][0] * std + mean, shifted.train_set[0][0] * std + mean
    padded = nn.functional.pad(x, (0, 0, 1, 1))  # an eighth of 8 rows, of 6 columns none
    crops = [crop.flip(dims) for crop in (padded[:, i : i + 8] for i in range(3)) for dims in ([], [2])]
    assert any(torch.allclose(z, crop, atol=1e-5) for crop in crops)
    assert torch.equal(every(plain.test_dataloader()), every(shifted.test_dataloader()))


def test_small_sets_are_read_once_and_large_ones_by_workers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready(root)
    before = every(data.val_dataloader())
    assert data.train_dataloader().num_workers == 0
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    assert torch.equal(every(data.val_dataloader()), before)
    draw_classes(root, COUNTS, 8, 6)
    monkeypatch.setattr("deq_lightning.data.images.folder.HELD", 40 * 48 - 1)
    monkeypatch.setattr("deq_lightning.data.base.suggested_max_num_workers", lambda devices: 1)
    data = ready(root)
    assert data.val_dataloader().num_workers == 1 and torch.equal(every(data.val_dataloader()), before)


# --- checkpoints


def other_images(root: Path, size: tuple[int, ...] = (8, 6)) -> None:
    """Put other images in the place of all, of the same names."""
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        Image.fromarray(np.full(size, 3 * number, np.uint8)).save(path)


def test_what_was_saved_wins(root: Path) -> None:
    state = ready(root).state_dict()
    draws = ready(root).view.read(root / "eel" / "19.png")
    assert torch.load(_saved(state, root), weights_only=True) == state
    other_images(root)
    before, after = ImageFolder(str(root)), ready(root)
    own = after.state_dict()
    assert own["mean"] != state["mean"]
    before.load_state_dict(state)  # as in Python
    before.setup("test")
    after.load_state_dict(state)  # as Lightning does, after `setup`
    mean, std = torch.tensor(state["mean"]), torch.tensor(state["std"])
    for data in (before, after):
        torch.testing.assert_close(every(data.test_dataloader()), (every(raw(data)) - mean) / std)
        assert data.state_dict() == state
    alone = ImageFolder("nowhere")
    alone.load_state_dict(state)
    draw(root.parent / "19.png", 8, 6, seed=1000 * ord("e") + 19)
    assert torch.equal(alone.prepare(root.parent / "19.png"), (draws - mean) / std)
    assert alone.samples == before.samples and alone.class_names == ["cat", "dog", "eel"]


def raw(data: ImageFolder) -> list[tuple[Tensor, None]]:
    return [(torch.stack([data.view.read(path) for path in data.test_set.files]), None)]


def _saved(state: dict, root: Path) -> Path:
    torch.save(state, root.parent / "state.pt")
    return root.parent / "state.pt"


def test_a_checkpoint_of_other_classes_is_refused(root: Path) -> None:
    state = ready(root).state_dict()
    (root / "dog").rename(root / "wolf")
    data = ImageFolder(str(root))
    data.load_state_dict(state)
    with pytest.raises(DataError) as error:
        data.setup("predict")
    assert str(error.value) == (
        f"the checkpoint was trained with 3 classes, and `{root}` has others: `dog` is missing and `wolf` is new. Set "
        "`root=PATH` to name images of the same classes, or train again."
    )
    with pytest.raises(DataError, match="has others"):
        ready(root).load_state_dict(state)


def test_other_training_images_are_said(root: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Where the splits are drawn, one more file moves images between them."""
    data = ready(root)
    data.load_state_dict(data.state_dict())
    assert not [one for one in recwarn if "trained on other files" in str(one.message)]
    with pytest.warns(UserWarning, match="it may have seen images that now test. Set `root`, `seed`,"):
        ready(root, seed=1).load_state_dict(data.state_dict())


def test_a_run_saves_the_statistics_and_a_test_uses_them(root: Path, tmp_path: Path) -> None:
    task = ImageClassification(MDEQ(1, 3, channels=(4,), groups=2, head_channels=(2,), final_channels=4))
    run: pl.Trainer = trainer(tmp_path, max_steps=1)
    run.fit(task, ready(root))
    run.save_checkpoint(tmp_path / "one.ckpt")
    state = torch.load(tmp_path / "one.ckpt", weights_only=True)["ImageFolder"]
    assert state == ready(root).state_dict()
    other_images(root)
    data = ImageFolder(str(root))
    trainer(tmp_path).test(task, data, ckpt_path=tmp_path / "one.ckpt", verbose=False)
    assert data.state_dict() == state
    (root / "dog").rename(root / "wolf")
    with pytest.raises(DataError, match="has others"), restoring(tmp_path / "one.ckpt"):  # which calls others damaged
        trainer(tmp_path).test(task, ImageFolder(str(root)), ckpt_path=tmp_path / "one.ckpt", verbose=False)


# --- refusals


def refused(root: Path, **options: object) -> str:
    """Return the one line that is said at the begin of a run."""
    with pytest.raises(DataError) as error:
        ready(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def remove(root: Path, names: str = "*") -> None:
    for path in root.rglob(f"{names}.png"):
        path.unlink()


def loose(root: Path) -> None:
    draw(root / "lost.png", 8, 6)


def flat(root: Path) -> None:
    loose(root)
    for name in COUNTS:
        (root / name).rename(root.parent / name)


def splits(*names: str) -> Callable[[Path], None]:
    def lay(root: Path) -> None:
        for name in COUNTS:
            (root / name).rename(root.parent / name)
        for name in names:
            draw_classes(root / name, {"cat": 3, "dog" if name == "train" else "ox": 3}, 8, 6)

    return lay


DEFECTS = [
    (lambda root: root.rename(root.parent / "other"), "there is no folder `{root}`. Set `root=PATH`"),
    (lambda root: flat(root) or (root / "lost.png").unlink(), "`{root}` has no folders in it. Put the images into a"),
    (
        flat,
        "`{root}` has images, but no folders of classes. Put the images into a folder for each class, `{root}/CLASS",
    ),
    (loose, "`{root}/lost.png` lies beside the folders of classes. Move it into one of them, or away."),
    (remove, "`{root}/cat` holds no images (.bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp). Add some, or remove"),
    (
        lambda root: [remove(root / n) or (root / n).rmdir() for n in ("cat", "dog")],
        "there is one class in `{root}`, `eel`,",
    ),
    (
        lambda root: remove(root / "dog", "0[2-9]"),
        "class `dog` has 2 images, and needs 3 or more: train, test, val take",
    ),
    (splits("train", "test"), "`{root}/test/ox/00.png` of `test` is of a class `ox` that `train` lacks. Remove it"),
    (splits("val", "test"), "there is `{root}/test`, but no `{root}/train`. Add it, or set `root=PATH`"),
    (splits("train", "val", "valid"), "`{root}` has two folders of one split: train and val and valid. Leave one."),
    (splits("train", "test", "extra"), "`{root}` has folders of splits, test and train, and beside them `extra`. Move"),
    (lambda root: (root / "cat" / "03.png").write_bytes(b"x"), "`{root}/cat/03.png` cannot be read, it is damaged or"),
]


@pytest.mark.parametrize(("spoil", "said"), DEFECTS, ids=[said[-40:] for _, said in DEFECTS])
def test_layouts_that_are_refused(spoil: Callable[[Path], object], said: str, root: Path) -> None:
    spoil(root)
    assert said.format(root=root) in refused(root)


def test_a_file_is_no_folder(root: Path) -> None:
    assert "is a file. Unpack it if it is an archive" in refused(root / "cat" / "00.png")


def test_images_too_large_and_of_no_range(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((8, 6), np.float32)).save(root / "cat" / "00.tif")
    assert "cat/00.tif` has 32 bits a pixel, of no known range. Save it with 8 or 16 bits." in refused(root)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert re.search(
        r"cat/00.png` is too large an image \(Image size \(48 pixels\) exceeds limit of 40 pix", refused(root)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"val_size": 2}, "`val_size` must stand for 3 images or more, as many as there are classes, got 2 of 40. Set"),
        (
            {"test_size": 0.9},
            "`test_size` and `val_size` must leave 3 or more of the 40 images to train on, got 36 + 6.",
        ),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, object], said: str, root: Path) -> None:
    with pytest.raises(SplitError, match=re.escape(said)):
        ImageFolder(str(root), **options).setup()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "file,label\ncat/00.png,a\ncat/nix.png,b\n",
            "line 3 of `{table}` names `cat/nix.png`, which is not in `{root}`.",
        ),
        (
            "file,label\ncat/00.png,a\n\ncat/00.png,b\n",
            "line 4 of `{table}` names `cat/00.png`, as line 2 does. Remove",
        ),
        ("file,label\ncat/00.png\n", "line 2 of `{table}` has no label. Add it"),
        ("file,label,split\ncat/00.png,a,dev\n", "line 2 of `{table}` has the split `dev`. Write train, val or test."),
        ("file,label,split\ncat/00.png,a,val\n", "`{table}` has no rows of the split train. Add some."),
        ("file,label\n", "`{table}` has no rows. Add some."),
        ("file;label\ncat/00.png;a\n", "lacks file; its first line is `file;label`. Name its columns there."),
        ("", "`{table}` must have columns file and label, separated by commas, and lacks file"),
        ("file,label\n\ud800", "`{table}` is not a table in UTF-8 ("),
    ],
)
def test_tables_that_are_refused(text: str, said: str, root: Path) -> None:
    table = root / "labels.csv"
    table.write_bytes(text.encode(errors="surrogatepass"))
    assert said.format(table=table, root=root) in refused(root, labels="labels.csv")


def test_a_table_that_is_missing(root: Path) -> None:
    assert f"there is no file `labels.csv`, neither from here nor in `{root}`" in refused(root, labels="labels.csv")
