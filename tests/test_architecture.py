"""Imports point one way, and frameworks stay where they belong."""

import ast
from pathlib import Path

import pytest

import acsp_lightning

PACKAGE = Path(acsp_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
RANKS = {
    "functional": 0,
    "structure": 1,
    "allocation": 2,
    "bars": 2,
    "batches": 2,
    "capture": 2,
    "checkpoint": 2,
    "companions": 2,
    "complexity": 2,
    "damage": 2,
    "card": 5,
    "draft": 0,
    "evidence": 2,
    "export": 2,
    "export_command": 6,
    "guard": 2,
    "journal": 3,
    "latency": 2,
    "logbook": 2,
    "loaders": 2,
    "operation": 3,
    "passes": 2,
    "plain": 3,
    "previewing": 5,
    "probation": 3,
    "progress": 0,
    "ranks": 2,
    "rehearsal": 3,
    "settings": 2,
    "proposal": 2,
    "pipeline": 3,
    "report": 2,
    "schedule": 3,
    "snapshot": 2,
    "views": 2,
    "volume": 2,
    "callback": 4,
    "cli": 6,
    "commands": 6,
}
WITH_LIGHTNING = {
    "bars",
    "callback",
    "cli",
    "companions",
    "export_command",
    "journal",
    "loaders",
    "logbook",
    "operation",
    "previewing",
    "probation",
    "schedule",
    "zoo",
}


def part(path: Path) -> str:
    """Sub-package or module of the package that a file is in; "" for the package's own __init__."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")


def imported(path: Path) -> set[str]:
    """Every absolute module name imported anywhere in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_parts(path: Path) -> set[str]:
    split = [name.split(".") for name in imported(path)]
    parts = {names[1] for names in split if names[0] == "acsp_lightning" and len(names) > 1}
    return {name for name in parts if name in RANKS or name == "zoo"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = part(path)
    if own == "":
        return
    if own == "zoo":
        assert own_parts(path) <= {"zoo"}
        return
    assert own in RANKS, f"{own} has no place in the order of imports yet"
    above = {name for name in own_parts(path) if name == "zoo" or RANKS[name] > RANKS[own]}
    assert not above, f"{path.name} imports {above} from above"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_frameworks_stay_in_their_places(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    if part(path) not in WITH_LIGHTNING:
        assert not roots & {"lightning", "pytorch_lightning"}
    if path != PACKAGE / "structure" / "groups.py":
        assert "torch_pruning" not in roots
    if part(path) == "functional":
        assert "torch.nn" not in imported(path)
        assert not any(name.startswith("torch.nn.") for name in imported(path))


def test_no_cycle_among_equals() -> None:
    """Modules of one rank may import each other, but not in a circle."""
    edges = {part(p): own_parts(p) - {part(p)} for p in FILES if RANKS.get(part(p)) == 2}
    while edges:
        free = [name for name, needs in edges.items() if not needs & edges.keys()]
        assert free, f"{sorted(edges)} import each other in a circle"
        edges = {name: needs for name, needs in edges.items() if name not in free}
