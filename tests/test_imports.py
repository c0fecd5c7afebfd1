"""What is imported, and when: public names bring what they need, and no more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.marks import slow

import deq_lightning

LATER = {"torch_geometric", "networkx", "torchdiffeq", "sklearn", "tensorboard", "matplotlib", "pandas"}
TORCHMETRICS = {"torchvision", "scipy", "matplotlib"}  # what it imports where it is installed
LIGHTNING = {"torch", "pytorch_lightning", "torchmetrics", *TORCHMETRICS}
WATCHED = LATER | LIGHTNING | {"jsonargparse"}


def imported(code: str, folder: Path | None = None) -> set[str]:
    """Return which of the packages are imported after some code, in a process of its own."""
    report = f"\nimport json, sys; print(json.dumps([name for name in {sorted(WATCHED)} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, cwd=folder)
    assert not done.returncode, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("use", ["deq_lightning.__version__", "dir(deq_lightning)", "deq_lightning.models.__all__"])
def test_the_package_alone_imports_nothing(use: str) -> None:
    assert imported(f"import deq_lightning, deq_lightning.models; {use}") == set()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("Broyden, Anderson", {"torch"}),
        slow("MDEQ, UPG", LIGHTNING),
    ],
)
def test_a_name_brings_what_it_needs(names: str, expected: set[str]) -> None:
    found = imported(f"from deq_lightning import {names}")
    assert {"torch"} <= found <= expected


@pytest.mark.slow
def test_print_config_of_the_digits_brings_what_it_needs(tmp_path: Path) -> None:
    code = (
        "import gc, sys\nfrom deq_lightning.cli import main\n"
        "sys.argv[1:] = ['fit', '--config', 'digits_upg', '--print_config']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert gc.isenabled() and gc.get_freeze_count()"
    )
    found = imported(code, tmp_path)
    assert {"torch", "pytorch_lightning"} <= found <= LIGHTNING - {"torchvision"} | {"jsonargparse"}


def test_a_cell_can_be_compiled_in_a_new_process() -> None:
    """Of torch's settings some are not there before something asks for them."""
    assert "torch" in imported("from deq_lightning import MON\nMON(4, 3, 8).compile(backend='eager')")


def test_public_names_are_there() -> None:
    assert {"MDEQ", "UPG", "Digits", "ImageClassification"} <= set(dir(deq_lightning)) == set(deq_lightning.__all__)
    for name in dir(deq_lightning):
        namespace: dict = {}
        exec(f"from deq_lightning import {name}", namespace)
        assert namespace[name] is getattr(deq_lightning, name)


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match="MDQE"):
        _ = deq_lightning.MDQE
    with pytest.raises(ImportError, match="MDQE"):
        exec("from deq_lightning import MDQE")
