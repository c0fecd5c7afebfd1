"""What all tests share."""

import gc
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


@pytest.fixture(autouse=True)
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare every fit the second that its pictures take; `tests/app/test_pages.py` looks at them."""
    if hasattr(request.module, "main"):  # the command line
        from deq_lightning.app import results

        monkeypatch.setattr(results, "write_report", lambda folder: [])
