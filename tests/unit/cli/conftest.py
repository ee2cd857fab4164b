import sys
from pathlib import Path

import pytest
from helpers.commands import OWN

from acsp_lightning.cli import main


@pytest.fixture
def acsp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the command in an empty directory, as the shell would."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["acsp-lightning", *map(str, words)])
        main()

    return run


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's in the current directory, under a name that was never imported."""
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    return name
