"""Imports go one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "deq_lightning"
LEAVES = {"state", "configured", "files", "operators", "perron", "precision", "trust"}
MAY_IMPORT = {
    "state": set(),
    "configured": set(),
    "files": {"configured"},
    "operators": {"configured"},
    "perron": set(),
    "precision": set(),
    "trust": set(),
    "solvers": LEAVES,
    "gradients": {*LEAVES, "solvers"},
    "models": {*LEAVES, "solvers", "gradients"},
    "estimators": {*LEAVES, "solvers", "gradients", "models"},
    "samples": {"operators", "perron"},
    "tasks": {*LEAVES, "samples", "solvers", "gradients", "estimators", "models"},
    "data": {"configured", "operators", "perron", "samples", "trust"},
    "callbacks": {*LEAVES, "solvers", "gradients", "estimators", "models", "tasks"},
    "app": {*LEAVES, "samples", "solvers", "gradients", "estimators", "models", "tasks", "data", "callbacks"},
    "cli": {"app"},
}
SHARED = {  # what the families of a room may use of it; a family never imports another
    "models": {"base", "layers"},
    "data": {"base", "errors", "inputs", "order"},
}


def imports(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return names | {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}


def files(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


def own(file: Path) -> list[list[str]]:
    return [name.split(".")[1:] for name in imports(file) if name.startswith("deq_lightning.")]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_those_below_it(room: str) -> None:
    for file in files(room):
        assert {parts[0] for parts in own(file)} <= MAY_IMPORT[room] | {room}, file


@pytest.mark.parametrize("room", SHARED)
def test_no_family_imports_another(room: str) -> None:
    families = [folder for folder in (PACKAGE / room).iterdir() if folder.is_dir() and folder.name[0] != "_"]
    assert len(families) > 2
    for file in (file for folder in families for file in folder.rglob("*.py")):
        family = file.relative_to(PACKAGE / room).parts[0]
        # Nor the room's table of names, through which it would reach any of them.
        used = {parts[1] if len(parts) > 1 else "" for parts in own(file) if parts[0] == room}
        assert used <= {family} | (SHARED[room] if family != "layers" else set()), file


def test_every_room_is_listed() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {room for room in rooms if not room.startswith("__")} - {"configs"} == set(MAY_IMPORT)


def test_files_are_short() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert max(lengths.values()) <= 300
    assert sorted(lengths.values())[len(lengths) // 2] <= 150


def test_solvers_need_torch_alone() -> None:
    import sys

    for file in files("solvers"):
        others = {name.split(".")[0] for name in imports(file)} - {"torch", "deq_lightning"}
        assert others <= sys.stdlib_module_names, file


def test_one_lightning() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not any(name.split(".")[0] == "lightning" for name in imports(file)), file
