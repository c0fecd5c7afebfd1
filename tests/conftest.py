"""What all tests share."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays, torch and the collected tests: walking through it takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="session")
def no_report() -> Iterator[None]:
    """Spare every fit the second that its pictures take; `tests/app/test_pages.py` looks at them."""
    from deq_lightning.app import results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_report", lambda folder: [])
        yield
