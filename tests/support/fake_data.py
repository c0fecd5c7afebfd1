"""Tiny datasets in torchvision's and PyTorch Geometric's own file formats, for tests that must not download."""

import hashlib
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader
from torchvision import datasets


def labels_of(count: int, classes: int = 10) -> np.ndarray:
    """Return 0, 1, …, 9, 0, 1, …: every class as often as the others."""
    return np.arange(count) % classes


def make_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 100, test: int = 20) -> None:
    """Write five training batches and a test batch under `root`, and have torchvision expect their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    parts = np.array_split(np.arange(train), 5)
    train_list = [_cifar_batch(folder / f"data_batch_{i}", labels_of(train)[part]) for i, part in enumerate(parts, 1)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train_list)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [_cifar_batch(folder / "test_batch", labels_of(test))])
    name, checksum = _pickle(folder / "batches.meta", {"label_names": [f"class {label}" for label in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": checksum})


def make_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 1000, test: int = 200) -> None:
    """Write a file of each split under `root`, with both kinds of labels, and have torchvision expect the checksums."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for split, count in {"train": train, "test": test}.items():
        fine = labels_of(count, 100)
        content = {
            "data": _pixels(count, 3 * 32 * 32),
            "fine_labels": fine.tolist(),
            "coarse_labels": (fine // 5).tolist(),
        }
        monkeypatch.setattr(datasets.CIFAR100, f"{split}_list", [_pickle(folder / split, content)])
    names = {
        f"{kind}_label_names": [f"{kind} {n}" for n in range(count)] for kind, count in (("fine", 100), ("coarse", 20))
    }
    name, checksum = _pickle(folder / "meta", names)
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": checksum})


def make_mnist(root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 100, test: int = 20) -> None:
    """Write the four idx files under `root`; torchvision has no checksums for them."""
    del monkeypatch
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in {"train": train, "t10k": test}.items():
        (folder / f"{name}-images-idx3-ubyte").write_bytes(_idx(_pixels(count, 28, 28)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(_idx(labels_of(count).astype(np.uint8)))


def make_svhn(root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 100, test: int = 20) -> None:
    """Write the two `.mat` files under `root`, and have torchvision expect their checksums."""
    root.mkdir(parents=True, exist_ok=True)
    split_list = {}
    for name, count in {"train": train, "test": test}.items():
        path = root / f"{name}_32x32.mat"
        labels = labels_of(count)
        labels[labels == 0] = 10  # as SVHN writes the digit 0
        savemat(path, {"X": _pixels(32, 32, 3, count), "y": labels[:, None].astype(np.uint8)})
        split_list[name] = ["", path.name, _md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)


def make_imagenet(root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 10, val: int = 3) -> None:
    """Write `imagenet/train` and `imagenet/val` under `root`: two classes of as many JPEG files each."""
    del monkeypatch
    for split, count in {"train": train, "val": val}.items():
        for name in ("n01440764", "n02123045"):
            folder = root / "imagenet" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(_pixels(40, 60, 3)).save(folder / f"{name}_{number}.JPEG")


def make_cityscapes(root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 6, val: int = 2) -> None:
    """Write `cityscapes/leftImg8bit` and `cityscapes/gtFine` under `root`: two cities of as many images in each split.

    The colour of a pixel, one of `CITYSCAPES_COLOURS`, says its label, one of the 34; in blocks of 16 x 16 pixels.
    """
    del monkeypatch
    cities = {"train": ("aachen", "zurich"), "val": ("frankfurt", "munster")}
    for split, count in {"train": train, "val": val}.items():
        for number, city in itertools.product(range(count), cities[split]):
            blocks = np.random.default_rng(number).integers(0, 34, (4, 8), dtype=np.uint8)
            labels = np.kron(blocks, np.ones((16, 16), dtype=np.uint8))
            name = f"{split}/{city}/{city}_{number:06}_000019"
            _save(CITYSCAPES_COLOURS[labels], root / "cityscapes/leftImg8bit" / f"{name}_leftImg8bit.png")
            _save(labels, root / "cityscapes/gtFine" / f"{name}_gtFine_labelIds.png")


def make_tu(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "PROTEINS", labels: int = 3, graphs: int = 24
) -> None:
    """Write the text files of a collection: paths of 1 to 5 nodes, every third of them of class 2, the others of 1.

    The first graph is a single node, the last has no edges; the nodes' labels are 0, 1, …, 0, 1, …
    """
    del monkeypatch
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    sizes = [1, *(2 + number % 4 for number in range(1, graphs))]
    starts = np.cumsum([1, *sizes])
    pairs = [
        (start + i, start + i + 1) for start, size in zip(starts, sizes[:-1], strict=False) for i in range(size - 1)
    ]
    lines = {
        "A": [f"{a}, {b}" for pair in pairs for a, b in (pair, pair[::-1])],
        "graph_indicator": np.repeat(np.arange(1, graphs + 1), sizes),
        "graph_labels": [2 if number % 3 == 0 else 1 for number in range(graphs)],
        "node_labels": np.arange(sum(sizes)) % labels,
        "node_attributes": np.arange(sum(sizes)) / 2,
    }
    for part, values in lines.items():
        (folder / f"{name}_{part}.txt").write_text("".join(f"{value}\n" for value in values))


def make_ppi(
    root: Path, monkeypatch: pytest.MonkeyPatch, features: int = 50, labels: int = 121, train: int = 3
) -> None:
    """Write the files of the three splits under `root/PPI/raw`: rings of 4, 5, … nodes with an isolated one each."""
    del monkeypatch
    folder = root / "PPI" / "raw"
    folder.mkdir(parents=True)
    for split, graphs in {"train": train, "valid": 2, "test": 2}.items():
        draws = np.random.default_rng(graphs)
        sizes = [5 + number for number in range(graphs)]
        starts = np.cumsum([0, *sizes])
        rings = zip(starts, sizes, strict=False)
        pairs = [(start + i, start + (i + 1) % (size - 1)) for start, size in rings for i in range(size - 1)]
        links = [{"source": int(a), "target": int(b)} for pair in pairs for a, b in (pair, pair[::-1])]
        nodes = [{"id": number} for number in range(sum(sizes))]
        content = {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}
        (folder / f"{split}_graph.json").write_text(json.dumps(content))
        np.save(folder / f"{split}_graph_id.npy", np.repeat(np.arange(1, graphs + 1), sizes))
        np.save(folder / f"{split}_feats.npy", draws.normal(size=(sum(sizes), features)))
        np.save(folder / f"{split}_labels.npy", draws.integers(0, 2, (sum(sizes), labels)))


def make_wikitext(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str = "wikitext-2",
    pattern: str = "wiki.{}.tokens",
    lines: int = 60,
) -> None:
    """Write the three files of a corpus under `root/name`: headings, blank lines, sentences of 90 words w0, w1, …

    Word w0 is the most frequent, then w1, and so on; `<unk>` is among them, as in the official files.
    """
    del monkeypatch
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    words = [f"w{number}" for number in range(90) for _ in range(180 // (number + 1))]
    for split, count in {"train": lines, "valid": lines // 3, "test": lines // 3}.items():
        draws = np.random.default_rng(count)
        text = " \n = Heading = \n \n" + "".join(
            f" {' '.join(draws.choice(words, 40))} <unk> . \n" for _ in range(count)
        )
        (folder / pattern.format(split)).write_text(
            text + (" ".join(words) + " \n") * (split == "train"), encoding="utf-8"
        )


# Bright, so that none is the black of the padding.
CITYSCAPES_COLOURS = np.random.default_rng(0).integers(32, 256, (34, 3), dtype=np.uint8)


def error_of(loader: DataLoader, kind: type[Exception]) -> Exception:
    """Return the error that reading all batches raises, and end the workers, which else take five seconds to notice."""
    iterator = iter(loader)
    with pytest.raises(kind) as caught:
        list(iterator)
    getattr(iterator, "_shutdown_workers", lambda: None)()
    return caught.value


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _idx(array: np.ndarray) -> bytes:
    header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4")  # 0x08: unsigned bytes
    return header.tobytes() + array.tobytes()


def _cifar_batch(path: Path, labels: np.ndarray) -> list[str]:
    return _pickle(path, {"data": _pixels(len(labels), 3 * 32 * 32), "labels": labels.tolist()})


def _pickle(path: Path, content: dict[str, object]) -> list[str]:
    path.write_bytes(pickle.dumps(content))
    return [path.name, _md5(path)]


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def make_sudoku_extreme(root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 12, test: int = 5) -> None:
    """Write puzzles of 9x9, whose digits alone differ, as Sudoku-Extreme is published."""
    del monkeypatch
    generator = np.random.default_rng(0)
    rows, columns = np.indices((9, 9))
    grid = (3 * rows + rows // 3 + columns) % 9
    for split, count in {"train": train, "test": test}.items():
        lines = []
        for number in range(count):
            answer = (generator.permutation(9)[grid] + 1).flatten()
            question = np.where(generator.random(81) < 0.4, answer, 0)
            texts = ["".join(map(str, one)) for one in (question, answer)]
            lines.append(f"fake{number},{texts[0].replace('0', '.')},{texts[1]},{number}")
        _write_csv(root / "sudoku_extreme" / f"{split}.csv", ["source,question,answer,rating", *lines])


def make_maze_hard(root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 6, test: int = 3, side: int = 30) -> None:
    """Write corridors between walls, each somewhere else, as Maze-Hard is published."""
    del monkeypatch
    for split, first, count in (("train", 1, train), ("test", train + 1, test)):
        lines = []
        for row in range(first, first + count):
            question = np.full((side, side), "#")
            question[row, 1:-1] = " "
            question[row, 1], question[row, -2] = "S", "G"
            answer = np.where(question == " ", "o", question)
            lines.append(",".join("".join(one.flatten()) for one in (question, answer)))
        _write_csv(root / "maze_hard" / f"{split}.csv", ["question,answer", *lines])


def _write_csv(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
