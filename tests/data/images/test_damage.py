"""Files of MNIST, SVHN and the CIFARs that are not what their name says: one line each, and nothing is unpickled."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from support.fake_data import make_cifar10, make_cifar100, make_mnist, make_svhn
from torchvision import datasets

from deq_lightning.data.errors import DatasetNotFoundError, SplitError
from deq_lightning.data.images.benchmarks import CIFAR10, CIFAR100, MNIST, SVHN
from deq_lightning.data.images.torchvision_images import TorchvisionImages


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds all the datasets: 10 training and 2 test images of each class."""
    for make in (make_mnist, make_svhn, make_cifar10, make_cifar100):
        make(tmp_path, monkeypatch)
    return tmp_path


def refused(kind: type[TorchvisionImages], root: Path) -> str:
    """Return the one line that is said of the files, which is the same from both ways in."""
    said = []
    for step in ("prepare_data", "setup"):
        with pytest.raises(DatasetNotFoundError) as error:
            getattr(kind(str(root), val_size=2 * kind.classes), step)()
        said.append(str(error.value))
    assert said[0] == said[1] and "\n" not in said[0]
    return said[0]


def idx(kind: int, *shape: int, body: bytes) -> bytes:
    return np.array([256 * kind + len(shape), *shape], dtype=">i4").tobytes() + body


def of(labels: list[int]) -> bytes:
    return idx(8, len(labels), body=bytes(labels))


TEN = list(range(10))


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        (0, idx(8, 100, 14, 56, body=bytes(100 * 784)), "images must be (1, 28, 28), got (1, 14, 56)"),
        (0, idx(8, 99, 28, 28, body=bytes(99 * 784)), "99 images have 100 labels"),
        (0, idx(10, 100, 28, 28, body=bytes(100 * 784)), None),
        (0, idx(8, 0, 28, 28, body=b""), None),
        (0, idx(8, 2**31 - 1, 28, 28, body=bytes(784)), None),
        (0, b"\0\0", None),
        (1, of([200, *TEN * 9, *TEN[1:]]), "labels must be 0 to 9, got 0 to 200"),
        (1, of([3] * 100), "every class must have 2 images or more, 0 has 0"),
        (1, of([7, *TEN[:7], *TEN[8:], *[0] * 90]), "every class must have 2 images or more, 1 has 1"),
        (1, of(TEN * 9), "100 images have 90 labels"),
        (1, idx(8, 10, 10, body=bytes(100)), None),
    ],
)
def test_idx_files_of_something_else(file: int, content: bytes, cause: str | None, root: Path) -> None:
    (root / MNIST.files[file]).write_bytes(content)
    line = refused(MNIST, root)
    assert line.startswith(f"`MNIST` under `{root}/` is damaged or cut short ({cause or ''}")
    assert line.endswith(
        f"Delete `{root}/MNIST` and set `download=True` to fetch it again, or `root=PATH` to name the folder that "
        "holds it."
    )


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, np.ndarray]) -> None:
    path = root / "train_32x32.mat"
    savemat(path, content)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(datasets.SVHN.split_list, "train", ["", path.name, digest])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"X": np.zeros((14, 56, 3, 100), np.uint8), "y": np.arange(100) % 10 + 1}, "got (3, 14, 56)"),
        ({"X": np.zeros((32, 32, 3, 100), np.uint8), "y": np.full(100, 200)}, "labels must be 0 to 9, got 200 to 200"),
        ({"X": np.zeros((32, 32, 3, 100), np.uint8), "y": np.arange(90) % 10}, "100 images have 90 labels"),
        ({"X": np.zeros((32, 32, 3, 100), np.uint8)}, "'y'"),
        ({"X": np.zeros(5), "y": np.arange(5)}, "axes don't match array"),
    ],
)
def test_mat_files_of_something_else(
    content: dict[str, np.ndarray], cause: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which torchvision would have to expect the checksum, as a later edition of theirs may."""
    write_svhn(root, monkeypatch, content)
    line = refused(SVHN, root)
    assert line.startswith(f"`SVHN` under `{root}/` is damaged or cut short (") and f"{cause})" in line


def batch(root: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    path = root / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(pickle.dumps(content))
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[path.name, digest]])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"data": np.zeros((30, 3072), np.uint8), "labels": [200, *TEN * 2, *TEN[1:]]}, "labels must be 0 to 9, got"),
        ({"data": np.zeros((30, 3072), np.uint8), "labels": TEN}, "30 images have 10 labels"),
        ({"data": np.zeros((30, 3000), np.uint8), "labels": TEN * 3}, "cannot reshape array"),
        ({"labels": TEN}, "'data'"),
        ([], "list indices must be integers"),
    ],
)
def test_batches_of_something_else(content: object, cause: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch(root, monkeypatch, content)
    line = refused(CIFAR10, root)
    assert line.startswith(f"`CIFAR10` under `{root}/` is damaged or cut short ({cause}")


class Trap:
    """What writes a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("labels", "cause"),
    [
        ([100, *range(100), *range(1, 100)], "labels must be 0 to 99, got 0 to 100"),
        ([*range(99), *range(99)], "every class must have 2 images or more, 99 has 0"),
    ],
)
def test_a_hundred_classes(labels: list[int], cause: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "cifar-100-python" / "train"
    path.write_bytes(pickle.dumps({"data": np.zeros((len(labels), 3072), np.uint8), "fine_labels": labels}))
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [[path.name, digest]])
    assert f"is damaged or cut short ({cause})" in refused(CIFAR100, root)


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind in (CIFAR10, CIFAR100) for file in kind.files])
@pytest.mark.parametrize("download", [False, True])
def test_trust_is_in_batches_of_the_known_checksum_alone(
    kind: type[TorchvisionImages], file: str, download: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*arguments: object, **options: object) -> None:
        """Download what is there already."""

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", nothing)
    (root / file).write_bytes(pickle.dumps(Trap(root / "sprung")))
    data = kind(str(root), val_size=2 * kind.classes, download=download)
    for step in (data.prepare_data, data.setup):
        with pytest.raises(DatasetNotFoundError, match="is damaged or cut short"):
            step()
    assert not (root / "sprung").exists()


def plain(path: Path) -> None:
    torch.save((torch.zeros(100, 28, 28, dtype=torch.uint8), torch.arange(100) % 10), path)


@pytest.mark.parametrize(
    "write", [plain, lambda path: torch.save(Trap(path.parents[2] / "sprung"), path), lambda path: path.write_text("")]
)
def test_trust_in_mnist_never_reaches_the_tensors_of_early_versions(write: Callable[[Path], None], root: Path) -> None:
    before = MNIST(str(root), val_size=20)
    before.setup()
    folder = root / "MNIST" / "processed"
    folder.mkdir()
    for name in ("training.pt", "test.pt"):
        write(folder / name)
    data = MNIST(str(root), val_size=20)
    data.prepare_data()
    data.setup()
    assert torch.equal(data.train_set.dataset.data, before.train_set.dataset.data) and not (root / "sprung").exists()
    assert data.train_set.dataset.data.any()
    (root / MNIST.files[0]).unlink()
    with pytest.raises(DatasetNotFoundError, match=rf"was not found .*\(expected `{root / MNIST.files[0]}`\)"):
        data.prepare_data()


@pytest.mark.parametrize("kind", [MNIST, SVHN, CIFAR10, CIFAR100])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 1e-9}, "`val_size` must stand for {0} images or more, one of each class, got 1 of the {0}0"),
        ({"train_size": 1e-9}, "`train_size` must stand for {0} images or more, one of each class, got 0 of the {0}0"),
        ({"test_size": 1e-9}, "a part of the {1} images must have {0} images and leave out {0}, got 0"),
        ({"val_size": 1 - 1e-9}, "`val_size` must leave {0} of the {0}0 training images to train on, got {0}0"),
    ],
)
def test_shares_of_nearly_nothing(
    kind: type[TorchvisionImages], options: dict[str, float], message: str, root: Path
) -> None:
    data = kind(str(root), **{"val_size": 2 * kind.classes, **options})
    with pytest.raises(SplitError, match=message.format(kind.classes, 2 * kind.classes)) as error:
        data.setup()
    assert "\n" not in str(error.value)
