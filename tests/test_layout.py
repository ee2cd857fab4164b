"""tests/unit mirrors the package, file for file; the benchmarks, which no test runs, fit it."""

import runpy
from pathlib import Path

import pytest

import acsp_lightning

PACKAGE = Path(acsp_lightning.__file__).parent
UNIT = Path(__file__).parent / "unit"
BENCHMARKS = sorted(Path(__file__).parent.joinpath("benchmarks").glob("*.py"))


def unit_tests(package: Path) -> set[Path]:
    """Where the tests of every module belong: a/b.py has a/test_b.py, and so has a/_b.py."""
    modules = (path.relative_to(package) for path in package.rglob("*.py"))
    return {
        module.with_name(f"test_{module.name.removeprefix('_')}")
        for module in modules
        if module.name != "__init__.py"
    }


def found_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("test_*.py")}


def test_every_module_has_its_tests() -> None:
    assert not unit_tests(PACKAGE) - found_below(UNIT)


def test_every_unit_test_has_its_module() -> None:
    assert not found_below(UNIT) - unit_tests(PACKAGE)


def test_unit_tests_are_tests() -> None:
    empty = [path for path in UNIT.rglob("test_*.py") if "\ndef test_" not in path.read_text()]
    assert not empty


def test_what_is_missing_is_seen(tmp_path: Path) -> None:
    for name in ("a.py", "room/_b.py", "room/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert unit_tests(tmp_path) == {Path("test_a.py"), Path("room/test_b.py")}


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_imports_what_there_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(path.parent)
    runpy.run_path(str(path))
