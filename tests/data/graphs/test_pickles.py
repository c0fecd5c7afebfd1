"""Nothing that lies beside the files of graphs is run or read, and half a download is never taken for a whole one."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_data import make_ppi, make_tu
from torch import Tensor

from deq_lightning import PPI, Chains, GraphDataModule, KarateClub, TUGraphs
from deq_lightning.data.errors import DatasetNotFoundError

NAMES = ("data", "train", "val", "valid", "test", "pre_transform", "pre_filter")  # what PyTorch Geometric looks for
FILES = {TUGraphs: "PROTEINS", PPI: "PPI"}


class Trap:
    """What writes a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def build(kind: type[GraphDataModule], root: Path, **options: object) -> GraphDataModule:
    if kind is TUGraphs:
        return TUGraphs(str(root), folds=4, **options)
    return PPI(str(root / "PPI"), **options)


def lay_traps(root: Path) -> Path:
    """Put pickles into every folder, and return the file that shows that one was read."""
    marker = root / "sprung"
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir() and path.name != "processed")]:
        for place in (folder / "processed", folder):
            place.mkdir(exist_ok=True)
            for name in NAMES:
                torch.save(Trap(marker), place / f"{name}.pt")
    return marker


def test_the_trap_of_the_trust_tests_works(tmp_path: Path) -> None:
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "data.pt")
    torch.load(tmp_path / "data.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the files of a collection and of PPI."""
    folder = tmp_path / "data"
    make_tu(folder, monkeypatch)
    make_ppi(folder, monkeypatch)
    return folder


def archive_of(kind: type[GraphDataModule], root: Path, place: Path, leave_out: str = "nothing") -> Path:
    """Move the files of a data module to an archive, in a folder as TU Dortmund has them, with traps among them."""
    raw, path = root / FILES[kind] / "raw", place / "archive.zip"
    torch.save(Trap(root / "sprung"), place / "data.pt")
    with zipfile.ZipFile(path, "w") as archive:
        for file in raw.iterdir():
            if leave_out not in file.name:
                archive.write(file, f"{FILES[kind]}/{file.name}" if kind is TUGraphs else file.name)
        for name in ("processed/data.pt", "../processed/data.pt", "raw/data.pt", "data.pt"):
            archive.write(place / "data.pt", name)
    shutil.rmtree(raw)
    return path


def downloader(archive: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Download by copying the archive; return the addresses that are asked for."""
    asked: list[str] = []

    def download(url: str, folder: str) -> str:
        asked.append(url)
        return shutil.copy(archive, folder)

    monkeypatch.setattr("deq_lightning.data.graphs.base.download_url", download)
    return asked


def numbers(data: GraphDataModule) -> list[Tensor]:
    data.prepare_data()
    data.setup()
    graphs = [*data.train_set, *data.val_set, *data.test_set]
    return [tensor for graph in graphs for tensor in (graph.x, graph.edge_index, graph.edge_weight, graph.y)]


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_trust_in_files_never_reaches_pickles_beside_them(
    kind: type[GraphDataModule], download: bool, root: Path
) -> None:
    before = numbers(build(kind, root))
    marker = lay_traps(root)
    found = sorted(root.rglob("*"))
    assert all(map(torch.equal, numbers(build(kind, root, download=download)), before))
    assert not marker.exists() and sorted(root.rglob("*")) == found


@pytest.mark.parametrize("kind", FILES)
def test_trust_in_a_download_never_reaches_pickles(
    kind: type[GraphDataModule], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those in the archive nor those that lie where its files go."""
    before = numbers(build(kind, root))
    names = sorted(path.name for path in (root / FILES[kind] / "raw").iterdir())
    asked = downloader(archive_of(kind, root, tmp_path), monkeypatch)
    marker = lay_traps(root)
    assert all(map(torch.equal, numbers(build(kind, root, download=True)), before))
    assert not marker.exists()
    raw = root / FILES[kind] / "raw"
    assert sorted(path.name for path in raw.iterdir()) == names
    assert [url.rsplit("/", 1)[1] for url in asked] == [{TUGraphs: "PROTEINS.zip", PPI: "ppi.zip"}[kind]]
    for folder in (root, root / FILES[kind]):
        assert not list(folder.glob("tmp*"))


@pytest.mark.parametrize("kind", [Chains, KarateClub])
def test_trust_in_the_working_folder_is_not_needed_without_files(
    kind: type[GraphDataModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = lay_traps(tmp_path)
    monkeypatch.chdir(tmp_path)
    numbers(kind())
    assert not marker.exists()


@pytest.mark.parametrize("file", ["feats", "labels", "graph_id"])
def test_trust_in_arrays_excludes_objects(file: str, root: Path) -> None:
    trap = np.array([Trap(root / "sprung")], dtype=object)
    np.save(root / f"PPI/raw/train_{file}.npy", trap, allow_pickle=True)
    with pytest.raises(DatasetNotFoundError, match=r"damaged, .*\(Object arrays cannot be loaded"):
        PPI(str(root / "PPI")).setup()
    assert not (root / "sprung").exists()


def broken(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "leave_out", "cause"),
    [(broken, "nothing", "File is not a zip file"), (lambda _: None, "graph", r"the archive has no \w*graph\S*")],
)
@pytest.mark.parametrize("kind", FILES)
def test_durable_files_come_from_whole_archives_only(
    kind: type[GraphDataModule],
    spoil: Callable[[Path], None],
    leave_out: str,
    cause: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A download that failed leaves nothing behind, and the next one begins anew."""
    before = numbers(build(kind, root))
    copy = shutil.copytree(root, tmp_path / "copy")
    bad = archive_of(kind, root, tmp_path, leave_out)
    spoil(bad)
    downloader(bad, monkeypatch)
    found = sorted(root.rglob("*"))
    with pytest.raises(DatasetNotFoundError, match=rf"could not be downloaded to .* \({cause}\)\. Check"):
        build(kind, root, download=True).prepare_data()
    assert sorted(root.rglob("*")) == found
    downloader(archive_of(kind, copy, tmp_path), monkeypatch)
    assert all(map(torch.equal, numbers(build(kind, root, download=True)), before))


def test_durable_downloads_put_the_files_that_stand_for_all_last(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a run ends between two files, the next one does not take the collection for one without labels."""
    downloader(archive_of(TUGraphs, root, tmp_path), monkeypatch)
    moved: list[str] = []
    monkeypatch.setattr("deq_lightning.data.graphs.base.os.replace", lambda _, to: moved.append(to.name))
    build(TUGraphs, root, download=True).fetch()
    assert sorted(moved[:2]) == ["PROTEINS_node_attributes.txt", "PROTEINS_node_labels.txt"] and len(moved) == 5
