"""The house: imports point one way, in no circle, and frameworks stay where they belong."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import acsp_lightning

NAME = "acsp_lightning"
PACKAGE = Path(acsp_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Every room of the package, from the ground floor up. A room may import from its own floor and below.
FLOORS = (
    ("functional", "files", "progress", "serialization"),
    ("structure",),
    ("capture", "measure", "checkpoint"),
    ("settings",),
    ("selection",),
    ("report", "site"),
    ("pipeline",),
    ("previewing", "trainer", "export"),
    ("callback",),
    ("cli", "zoo"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITH_LIGHTNING = {"callback", "trainer", "cli", "zoo"}
ROOT_MODULES = 10
LONGEST = 400  # lines


def module_name(path: Path) -> str:
    """Dotted name below the package; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """Every absolute name that a file imports, inside functions too, but not for the types alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, by name below the package, itself left out."""
    names = {name.removeprefix(f"{NAME}.") for name in imported(path) if name.startswith(f"{NAME}.")}
    found = {name for name in names if name in MODULES}
    # A package stands for what its __init__ imports, unless a module in it was meant.
    packages = {name for name in found if any(other.startswith(f"{name}.") for other in names & found)}
    return found - packages - {module_name(path)}


def room(module: str) -> str:
    return module.partition(".")[0]


def circles(edges: Mapping[str, set[str]]) -> list[str]:
    """What is left when modules that import nothing that is left are taken away."""
    left = dict(edges)
    while True:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        if not free:
            return sorted(left)
        left = {name: needs for name, needs in left.items() if name not in free}


PARAMETERS = pytest.mark.parametrize("module", sorted(MODULES.keys() - {""}))


@PARAMETERS
def test_every_module_has_a_floor(module: str) -> None:
    assert room(module) in FLOOR, f"{module} is in no room of the plan"


@PARAMETERS
def test_imports_point_down(module: str) -> None:
    own = room(module)
    for other in own_modules(MODULES[module]):
        allowed = room(other) == own if FLOOR[room(other)] == FLOOR[own] == FLOOR["cli"] else True
        assert FLOOR[room(other)] <= FLOOR[own], f"{module} imports {other} from above"
        assert allowed, f"{module} imports {other} beside it"


def test_no_circle_of_modules() -> None:
    edges = {name: own_modules(path) for name, path in MODULES.items() if name}
    assert not circles(edges)


def test_no_circle_of_rooms() -> None:
    edges: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name:
            others = {room(other) for other in own_modules(path)}
            edges.setdefault(room(name), set()).update(others - {room(name)})
    assert not circles(edges)


def test_a_circle_is_seen() -> None:
    """As that of the command line once was: three modules, one of them imported inside a function."""
    assert circles({"cli": {"commands"}, "commands": {"export"}, "export": {"cli"}, "a": {"cli"}}) == [
        "a",
        "cli",
        "commands",
        "export",
    ]


@PARAMETERS
def test_frameworks_stay_in_their_places(module: str) -> None:
    names = set(imported(MODULES[module]))
    roots = {name.partition(".")[0] for name in names}
    if room(module) not in WITH_LIGHTNING:
        assert not roots & {"lightning", "pytorch_lightning"}
    if room(module) == "functional":
        assert not any(name == "torch.nn" or name.startswith("torch.nn.") for name in names)


def test_the_root_tells_the_story() -> None:
    assert len([path for path in PACKAGE.glob("*.py")]) <= ROOT_MODULES


@PARAMETERS
def test_no_file_is_long(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST
