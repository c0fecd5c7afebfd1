"""Cityscapes' layout: labels, transforms of image and labels together, splits, seeds, and what is said of defects."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.fake_data import CITYSCAPES_COLOURS, error_of, make_cityscapes
from torch import Tensor
from torchvision import datasets

from deq_lightning import Cityscapes
from deq_lightning.data import DatasetNotFoundError, SplitError
from deq_lightning.data.images.cityscapes import train_ids

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
PALETTE = torch.as_tensor(CITYSCAPES_COLOURS).float()
NAMES = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
).split(", ")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with 12 training and 4 test images of 64 x 128 pixels, of two cities each."""
    make_cityscapes(tmp_path, monkeypatch)
    return tmp_path / "cityscapes"


def ready(root: Path, **options: object) -> Cityscapes:
    small = {"crop_size": (48, 80), "scale": (0.05, 0.1), "val_size": 4, "num_workers": 0}
    data = Cityscapes(str(root), **{**small, **options})
    data.prepare_data()
    data.setup()
    return data


def colours(image: Tensor) -> Tensor:
    """Undo the normalisation."""
    return (image * STD + MEAN) * 255


def labels_of(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the label that each pixel's colour stands for, and where it stands for one at all."""
    distance = (colours(image).unsqueeze(0) - PALETTE.view(34, 3, 1, 1)).abs().amax(dim=1)
    return train_ids()[distance.argmin(dim=0)], distance.amin(dim=0) < 0.1


def test_the_labels_are_torchvisions() -> None:
    table = train_ids()
    assert table.shape == (256,)
    assert [one.name for label in range(19) for one in datasets.Cityscapes.classes if table[one.id] == label] == NAMES
    for one in datasets.Cityscapes.classes:
        assert table[one.id] == (one.train_id if 0 <= one.train_id < 19 else 255), one.name
    assert (table[34:] == 255).all()  # among them -1, the license plates


def test_evaluation_keeps_every_pixel(root: Path) -> None:
    data = ready(root)
    for split in (data.val_set, data.test_set):
        image, labels = split[0]
        assert type(image) is type(labels) is Tensor
        assert image.shape == (3, 64, 128) and labels.shape == (64, 128) and labels.dtype == torch.int64
        expected, exact = labels_of(image)
        assert exact.all() and torch.equal(labels, expected.long())
        assert (labels == 255).any() and len(labels.unique()) > 5


def test_image_and_labels_move_together(root: Path) -> None:
    data = ready(root)
    heights = []
    for epoch in range(4):
        data.train_set.epoch.fill_(epoch)
        for index in range(8):
            image, labels = data.train_set[index]
            assert image.shape == (3, 48, 80) and labels.shape == (48, 80) and labels.dtype == torch.int64
            expected, exact = labels_of(image)
            assert exact.float().mean() > 0.5  # the others are mixtures, at the borders of the blocks
            assert torch.equal(labels[exact], expected[exact].long())
            heights.append(exact.float().mean().item())
    assert len(set(heights)) > 20  # every sample has a scale and a place of its own


def test_a_flip_mirrors_both(root: Path) -> None:
    data = ready(root, scale=(0.0625, 0.0625), crop_size=(64, 128))  # the very size of the files
    seen = set()
    for index, number in enumerate(data.train_set.dataset.indices):
        plain, labels = data.val_set.dataset[number]
        image, moved = data.train_set[index]
        flipped = not torch.equal(labels, moved)
        seen.add(flipped)
        assert torch.allclose(image, plain.flip(-1) if flipped else plain)
        assert torch.equal(moved, labels.flip(-1) if flipped else labels)
    assert seen == {True, False}


def test_scales_span_the_range(root: Path) -> None:
    data = ready(root, scale=(0.03125, 0.0625), crop_size=(64, 128))
    sizes = []
    for epoch in range(8):
        data.train_set.epoch.fill_(epoch)
        for index in range(8):
            image, labels = data.train_set[index]
            padded = (colours(image) < 1).all(dim=0)
            assert (labels[padded] == 255).all()
            rows, columns = ((~padded).any(dim=dim).sum().item() for dim in (1, 0))
            assert abs(columns - 2 * rows) <= 2
            sizes.append(rows)
    assert 32 <= min(sizes) < 37 and 59 < max(sizes) <= 64


def test_splits_are_disjoint_and_stratified(root: Path) -> None:
    data = ready(root)
    train, val = data.train_set.dataset.indices, data.val_set.indices
    assert sorted([*train, *val]) == list(range(12))
    images = data.val_set.dataset.images
    assert images == sorted(images)  # not in the order of the disk
    for seed in range(10):
        held_out = sorted(ready(root, seed=seed).val_set.indices)
        assert [Path(images[i]).parent.name for i in held_out] == ["aachen"] * 2 + ["zurich"] * 2
    assert {Path(image).parent.name for image in data.test_set.images} == {"frankfurt", "munster"}
    assert ready(root).val_set.indices == val and ready(root, seed=1).val_set.indices != val


def test_labels_stay_with_their_image_whatever_the_order_of_the_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(root).test_set
    listdir = datasets.cityscapes.os.listdir
    monkeypatch.setattr(datasets.cityscapes.os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    second = ready(root).test_set
    assert (first.images, first.targets) == (second.images, second.targets)


def one_pass(data: Cityscapes, epoch: int) -> tuple[Tensor, Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_augmentation_depends_on_seed_and_epoch_alone(root: Path) -> None:
    before = torch.get_rng_state()
    images, labels = one_pass(ready(root, batch_size=3), 1)
    again, also = one_pass(ready(root, batch_size=4, num_workers=2), 1)
    assert torch.equal(images, again) and torch.equal(labels, also)
    assert not torch.equal(images, one_pass(ready(root), 0)[0])
    assert not torch.equal(images, one_pass(ready(root, seed=1), 1)[0])
    assert torch.equal(torch.get_rng_state(), before)


def message(root: Path, fault: str) -> str:
    return (
        f"`Cityscapes` needs `{root}/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and "
        f"`{root}/gtFine/SPLIT/CITY/*_gtFine_labelIds.png` for the splits train and val; {fault}. "
        "Set `root=PATH` to name the folder that holds them, or put leftImg8bit_trainvaltest.zip and "
        f"gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com into `{root}/`; they are unpacked when "
        "a folder of a split does not exist."
    )


def empty(root: Path) -> None:
    shutil.rmtree(root / "leftImg8bit/val")
    (root / "leftImg8bit/val/frankfurt").mkdir(parents=True)


LABELS = "gtFine/train/zurich/zurich_000000_000019_gtFine_labelIds.png"
DEFECTS = {
    "there is no folder `{root}/leftImg8bit/train`": shutil.rmtree,
    "there is no folder `{root}/gtFine/train`": lambda root: shutil.rmtree(root / "gtFine"),
    "there is no folder `{root}/leftImg8bit/val`": lambda root: shutil.rmtree(root / "leftImg8bit/val"),
    "there are no images under `{root}/leftImg8bit/val`": empty,
    "1 images have no labels, the first is `{root}/leftImg8bit/train/zurich/zurich_000000_000019_leftImg8bit.png`": (
        lambda root: (root / LABELS).unlink()
    ),
}


@pytest.mark.parametrize("fault", DEFECTS)
def test_a_wrong_layout_is_refused_before_training(root: Path, fault: str) -> None:
    DEFECTS[fault](root)
    with pytest.raises(DatasetNotFoundError) as caught:
        Cityscapes(str(root)).prepare_data()
    assert str(caught.value) == message(root, fault.format(root=root))


def test_archives_are_unpacked(root: Path) -> None:
    expected = ready(root).test_set[0]
    for kind in ("leftImg8bit", "gtFine"):
        shutil.make_archive(str(root / f"{kind}_trainvaltest"), "zip", root, kind)
        shutil.rmtree(root / kind)
    image, labels = ready(root).test_set[0]
    assert torch.equal(image, expected[0]) and torch.equal(labels, expected[1])


def test_a_damaged_archive_is_refused(root: Path) -> None:
    shutil.rmtree(root / "gtFine")
    for kind in ("leftImg8bit", "gtFine"):
        (root / f"{kind}_trainvaltest.zip").write_bytes(b"PK, and no more")
    with pytest.raises(DatasetNotFoundError, match=r"there is no folder `.*gtFine/train`"):
        Cityscapes(str(root)).prepare_data()


@pytest.mark.parametrize("kind", ["leftImg8bit", "gtFine"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_is_named_in_one_line(root: Path, kind: str, num_workers: int) -> None:
    file = next((root / kind / "val/munster").glob("*_000001_*.png"))
    file.write_bytes(file.read_bytes()[:-60])
    text = str(error_of(ready(root, num_workers=num_workers).test_dataloader(), DatasetNotFoundError))
    assert text.startswith(f"`{file}` cannot be read, it is damaged or cut short (") and "\n" not in text


def test_palette_images_give_their_indices_as_labels(root: Path) -> None:
    file = root / "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png"
    labels = Image.open(file)
    expected = train_ids()[torch.as_tensor(np.array(labels)).long()]
    labels.putpalette([255, 0, 0] * 256)
    labels.save(file)
    data = ready(root)
    index = [Path(image).name for image in data.test_set.images].index("munster_000000_000019_leftImg8bit.png")
    assert Image.open(file).mode == "P" and torch.equal(data.test_set[index][1], expected.long())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crop_size": (0, 8)}, r"`crop_size` must be 1 or more, got \[0, 8\]"),
        ({"scale": (2.1, 0.5)}, r"`scale` must be ascending, got \[2.1, 0.5\]"),
        ({"scale": (0, 1)}, "`scale`"),
        ({"val_size": 0}, "`val_size` must be 1 or more, got 0"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Cityscapes(**options)


def test_a_split_that_does_not_fit_says_what_to_type(root: Path) -> None:
    with pytest.raises(SplitError, match="must be 2 to 10, because 2 cities share the 12 training images; got 1"):
        ready(root, val_size=1)


def test_enlarged_scenes_are_said_with_the_scale_that_fits(root: Path) -> None:
    """The middle of the default scales is 1,049 rows; a scale that was chosen for the images says nothing."""
    line = (
        "`Cityscapes` enlarges images of 64x128 pixels to 1049x2098, 269 times as many. Set `scale=[0.031, 0.13]` to "
        "compute with those that there are."
    )
    for scale, expected in {(0.5, 2.1): [line], (0.031, 0.13): [], (0.05, 0.1): []}.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ready(root, scale=scale)
        assert [str(one.message) for one in caught if "enlarges" in str(one.message)] == expected
