import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_data import labels_of, make_cifar10, make_cifar100, make_mnist, make_svhn
from torch import Tensor
from torch.utils.data import Subset
from torchvision import transforms

from deq_lightning.data.errors import DatasetNotFoundError
from deq_lightning.data.images.benchmarks import CIFAR10, CIFAR100, MNIST, SVHN, CIFARImages
from deq_lightning.data.images.torchvision_images import TorchvisionImages
from deq_lightning.samples import IMAGES, Samples

MAKERS = {CIFAR10: make_cifar10, CIFAR100: make_cifar100, MNIST: make_mnist, SVHN: make_svhn}
SHAPES = {CIFAR10: (3, 32, 32), CIFAR100: (3, 32, 32), MNIST: (1, 28, 28), SVHN: (3, 32, 32)}
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"

CLASSES = {CIFAR10: 10, CIFAR100: 100, MNIST: 10, SVHN: 10}

every_kind = pytest.mark.parametrize("kind", list(MAKERS), ids=lambda kind: kind.__name__)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds all the datasets: 10 training and 2 test images of each class."""
    for make in MAKERS.values():
        make(tmp_path, monkeypatch)
    return tmp_path


def ready(kind: type[TorchvisionImages], root: Path, **arguments: object) -> TorchvisionImages:
    data = kind(root=str(root), val_size=2 * CLASSES[kind], num_workers=0, **arguments)
    data.prepare_data()
    data.setup()
    return data


def labels(dataset: object) -> Tensor:
    return torch.tensor([dataset[i][1] for i in range(len(dataset))])


def pixels(dataset: object) -> Tensor:
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def some(dataset: object) -> Subset:
    return Subset(dataset, range(80))


@every_kind
def test_sizes_shapes_and_batches(kind: type[TorchvisionImages], root: Path) -> None:
    count = CLASSES[kind]
    data = ready(kind, root, batch_size=3 * count)
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [8 * count, 2 * count, 2 * count]
    batches = list(data.train_dataloader())
    assert [len(x) for x, _ in batches] == [3 * count, 3 * count, 2 * count]
    x, y = batches[0]
    assert x.shape == (3 * count, *SHAPES[kind]) and x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert data.samples == Samples(IMAGES, channels=x.shape[1], size=tuple(x.shape[2:]), classes=count)


@every_kind
def test_splits_are_disjoint_and_stratified(kind: type[TorchvisionImages], root: Path) -> None:
    data, count = ready(kind, root), CLASSES[kind]
    assert isinstance(data.train_set, Subset) and isinstance(data.val_set, Subset)
    assert sorted([*data.train_set.indices, *data.val_set.indices]) == list(range(10 * count))
    assert labels(data.train_set).bincount().tolist() == [8] * count
    assert labels(data.val_set).bincount().tolist() == [2] * count
    assert torch.equal(labels(data.test_set), torch.as_tensor(labels_of(2 * count, count)))


@every_kind
def test_seed_fixes_the_split(kind: type[TorchvisionImages], root: Path) -> None:
    one, same, other = (ready(kind, root, seed=seed).val_set.indices for seed in (0, 0, 1))
    assert one == same
    assert one != other


@every_kind
def test_pixels_are_normalised(kind: type[TorchvisionImages], root: Path) -> None:
    data = ready(kind, root)
    restored = pixels(data.test_set) * torch.tensor(kind.std).view(-1, 1, 1) + torch.tensor(kind.mean).view(-1, 1, 1)
    raw = torch.as_tensor(np.asarray(data.test_set.dataset.data)).reshape(2 * CLASSES[kind], -1)
    if issubclass(kind, CIFARImages):  # torchvision keeps it with the channels last
        raw = raw.view(-1, 32, 32, 3).permute(0, 3, 1, 2).flatten(1)
    assert torch.allclose(restored.flatten(1) * 255, raw.float(), atol=1e-3)


@every_kind
def test_iterating_leaves_the_global_stream_alone(kind: type[TorchvisionImages], root: Path) -> None:
    data = ready(kind, root, **({"augment": True} if issubclass(kind, CIFARImages) else {}))
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_setup_loads_what_the_stage_needs(root: Path) -> None:
    data = MNIST(root=str(root), val_size=20)
    data.setup("test")
    assert data.train_set is None and len(data.test_set) == 20
    data = MNIST(root=str(root), val_size=20)
    data.setup("fit")
    assert data.test_set is None and len(data.train_set) == 80


every_cifar = pytest.mark.parametrize("kind", [CIFAR10, CIFAR100], ids=lambda kind: kind.__name__)


@every_cifar
def test_classes_are_named(kind: type[CIFARImages], root: Path) -> None:
    word = {CIFAR10: "class", CIFAR100: "fine"}[kind]
    assert ready(kind, root).class_names == [f"{word} {number}" for number in range(CLASSES[kind])]


@every_cifar
def test_only_training_images_are_augmented(kind: type[CIFARImages], root: Path) -> None:
    plain, augmented = ready(kind, root), ready(kind, root, augment=True)
    assert torch.equal(pixels(plain.val_set), pixels(augmented.val_set))
    assert torch.equal(pixels(plain.test_set), pixels(augmented.test_set))
    assert torch.equal(labels(some(plain.train_set)), labels(some(augmented.train_set)))
    changed = (pixels(some(plain.train_set)) != pixels(some(augmented.train_set))).flatten(1).any(dim=1)
    assert changed.sum() > 70  # an image stays as it is with probability 1/162


def test_augmentation_shifts_and_flips(root: Path) -> None:
    plain, augmented = (pixels(ready(CIFAR10, root, augment=augment).train_set) for augment in (False, True))
    black = (0 - torch.tensor(CIFAR10.mean)) / torch.tensor(CIFAR10.std)
    canvas = black.view(1, 3, 1, 1).expand(80, 3, 40, 40).clone()
    canvas[:, :, 4:36, 4:36] = plain
    shifts = torch.stack([canvas[:, :, i : i + 32, j : j + 32] for i in range(9) for j in range(9)], dim=1)
    choices = torch.cat([shifts, shifts.flip(-1)], dim=1)
    found = torch.isclose(choices, augmented[:, None], atol=1e-5).flatten(2).all(dim=2)
    assert found.any(dim=1).all()
    flipped = found[:, 81:].any(dim=1).sum()
    assert 20 < flipped < 60


def passes(data: TorchvisionImages, *epochs: int) -> list[Tensor]:
    loader = data.train_dataloader()
    result = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        result.append(torch.cat([x for x, _ in loader]))
    return result


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_depends_on_seed_and_epoch_alone(root: Path, num_workers: int) -> None:
    data = ready(CIFAR10, root, augment=True)
    first, second = passes(data, 0, 1)
    data.num_workers = num_workers
    late, early = passes(data, 1, 0)  # persistent workers learn the epoch too
    assert torch.equal(late, second) and torch.equal(early, first)
    ordered = pixels(data.train_set)
    data.train_set.epoch.fill_(1)
    assert not torch.equal(ordered, pixels(data.train_set))


@every_kind
def test_missing_files_say_what_to_type(kind: type[TorchvisionImages], tmp_path: Path) -> None:
    data = kind(root=str(tmp_path / "nowhere"))
    for call in (data.prepare_data, data.setup):
        with pytest.raises(DatasetNotFoundError) as caught:
            call()
        assert str(caught.value) == (
            f"`{kind.__name__}` was not found under `{tmp_path}/nowhere/` "
            f"(expected `{tmp_path}/nowhere/{kind.files[0]}`). Set `download=True` to fetch it, "
            "or `root=PATH` to name the folder that holds it."
        )


@every_kind
def test_a_half_copied_folder_is_refused_before_training(kind: type[TorchvisionImages], root: Path) -> None:
    absent = root / kind.files[-1]
    absent.unlink()
    with pytest.raises(DatasetNotFoundError, match=f"expected `{absent}`"):
        kind(root=str(root)).prepare_data()


@every_kind
def test_a_truncated_file_says_what_to_delete(kind: type[TorchvisionImages], root: Path) -> None:
    file = root / kind.files[0]
    file.write_bytes(file.read_bytes()[:-100])
    top = root / Path(kind.files[0]).parts[0]
    with pytest.raises(DatasetNotFoundError, match=f"`{kind.__name__}` under .* is damaged") as caught:
        kind(root=str(root)).prepare_data()
    assert f"Delete `{top}`" in str(caught.value) and "`download=True`" in str(caught.value)
    assert "\n" not in str(caught.value) and "You can use" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an idx file at all"])
def test_garbage_is_refused(root: Path, content: bytes) -> None:
    (root / MNIST.files[1]).write_bytes(content)
    with pytest.raises(DatasetNotFoundError, match="is damaged or cut short"):
        MNIST(root=str(root)).prepare_data()


def test_a_failed_download_names_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no route to host:\ntried one mirror\ntried another")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DatasetNotFoundError, match=r"could not be downloaded to .* \(no route to host\)"):
        CIFAR10(root=str(tmp_path), download=True).prepare_data()


def test_only_prepare_data_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", lambda self: asked.append(self.root))
    data = CIFAR10(root=str(tmp_path), download=True)
    for call in (data.prepare_data, data.setup):
        with pytest.raises(DatasetNotFoundError):
            call()
    assert asked == [str(tmp_path)]


def test_bad_sizes_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"`val_size` must be 10 or more, got 0\."):
        MNIST(val_size=0)
    with pytest.raises(ValueError, match=r"`train_size` must be in \(0, 1\), got 1\.5"):
        MNIST(train_size=1.5)
    with pytest.raises(ValueError, match=r"`train_size` must be 100 or more, got 10\."):
        CIFAR100(train_size=10)
    data = MNIST(root=str(root), val_size=95)
    with pytest.raises(ValueError, match=r"must leave 10 of the 100 training images .* Set `val_size=10`."):
        data.setup("fit")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "install.py").is_file(), reason="needs shared/data beside the repository")
def test_the_real_files_load(tmp_path: Path) -> None:
    command = [sys.executable, str(SHARED / "install.py"), str(tmp_path), "mnist", "cifar10"]
    subprocess.run(command, check=True, capture_output=True)
    mnist = MNIST(root=str(tmp_path), download=True)  # which only unpacks what is there
    for data, train in ((mnist, 55_000), (CIFAR10(root=str(tmp_path), augment=True), 45_000)):
        data.prepare_data()
        data.setup()
        assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [train, 5_000, 10_000]
        x, y = next(iter(data.val_dataloader()))
        assert x.shape == (128, *SHAPES[type(data)])
        assert y.unique().tolist() == list(range(10))
        some = pixels(Subset(data.test_set, range(0, 10_000, 10)))
        assert some.mean().abs() < 0.05 and (some.std() - 1).abs() < 0.3


@every_kind
def test_parts_are_stratified_and_fixed_by_the_seed(kind: type[TorchvisionImages], root: Path) -> None:
    count = CLASSES[kind]
    sizes = {"train_size": 3 * count, "test_size": count}
    data, same, other = (ready(kind, root, **sizes, seed=seed) for seed in (0, 0, 1))
    assert labels(data.train_set).bincount().tolist() == [3] * count
    assert labels(data.test_set).bincount().tolist() == [1] * count
    assert data.train_set.indices == same.train_set.indices != other.train_set.indices
    assert not set(data.train_set.indices) & set(data.val_set.indices)


def test_augmentation_is_applied_in_order_before_the_images_are_normalised(root: Path) -> None:
    steps = [transforms.RandomHorizontalFlip(p=1.0), transforms.Pad(1, fill=0.5), transforms.CenterCrop(32)]
    plain, augmented = (pixels(ready(MNIST, root, augmentation=given).train_set) for given in (None, steps))
    grey = (0.5 - MNIST.mean[0]) / MNIST.std[0]
    expected = torch.full((80, 1, 32, 32), 0.0 - MNIST.mean[0]) / MNIST.std[0]  # CenterCrop pads with black
    expected[:, :, 1:31, 1:31] = grey
    expected[:, :, 2:30, 2:30] = plain.flip(-1)
    assert torch.allclose(augmented, expected, atol=1e-5)


def test_the_published_protocol_selects_on_the_test_images_and_says_so(root: Path) -> None:
    data = ready(MNIST, root, validate_on_test=True)
    assert len(data.train_set) == 100
    assert torch.equal(pixels(data.val_set), pixels(data.test_set))
    assert data.departures == ["the model is selected on the test images"]
    assert ready(MNIST, root).departures == []


def test_published_augmentation_of_test_images_is_said_too(root: Path) -> None:
    plain, data = ready(CIFAR10, root, augment=True), ready(CIFAR10, root, augment=True, augment_test=True)
    assert (pixels(plain.test_set) != pixels(data.test_set)).any()
    assert torch.equal(pixels(data.test_set), pixels(data.test_set))  # the same in every pass
    assert data.departures == ["the test images are augmented"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 90}, "`val_size` must leave the 90 of `train_size` of the 100 training images .* got 20"),
        ({"test_size": 11}, "a part of the 20 images must have 10 images and leave out 10, got 11"),
    ],
)
def test_parts_that_do_not_fit(arguments: dict[str, int], message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ready(MNIST, root, **arguments)
