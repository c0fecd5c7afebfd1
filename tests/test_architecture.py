"""Imports go one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "deq_lightning"
LEAVES = {"state", "configured"}
MAY_IMPORT = {
    "state": set(),
    "configured": set(),
    "solvers": LEAVES,
    "gradients": {*LEAVES, "solvers"},
    "models": {*LEAVES, "solvers", "gradients"},
    "estimators": {*LEAVES, "solvers", "gradients", "models"},
    "tasks": {*LEAVES, "solvers", "gradients", "estimators", "models"},
    "data": {"configured"},
    "callbacks": {*LEAVES, "solvers", "gradients", "estimators", "models", "tasks"},
    "parsing": set(),
    "runs": {"parsing"},
    "cross_validation": {"parsing", "runs"},
}


def imports(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return names | {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}


def files(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_those_below_it(room: str) -> None:
    for file in files(room):
        own = {name.split(".")[1] for name in imports(file) if name.startswith("deq_lightning.")}
        assert own <= MAY_IMPORT[room] | {room}, file


def test_every_room_is_listed() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__") and path.name != "configs"}
    assert rooms - {"cli"} == set(MAY_IMPORT)


def test_solvers_need_torch_alone() -> None:
    import sys

    for file in files("solvers"):
        others = {name.split(".")[0] for name in imports(file)} - {"torch", "deq_lightning"}
        assert others <= sys.stdlib_module_names, file


def test_one_lightning() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not any(name.split(".")[0] == "lightning" for name in imports(file)), file
