import sys
from pathlib import Path

import pytest

from acsp_lightning.cli import main


@pytest.fixture
def acsp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the command in an empty directory, as the shell would."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["acsp-lightning", *map(str, words)])
        main()

    return run
