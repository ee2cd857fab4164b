import subprocess
import sys

import pytest
from helpers.commands import run

from acsp_lightning.cli.exporting import WRITERS
from acsp_lightning.cli.formats import FORMATS


def test_every_format_has_what_writes_it_and_an_ending_of_its_own() -> None:
    assert FORMATS.keys() == WRITERS.keys()
    assert len(set(FORMATS.values())) == len(FORMATS)
    assert all(suffix.startswith(".") for suffix in FORMATS.values())


def test_the_help_lists_all_formats(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("export", "--help")
    printed = capsys.readouterr().out
    assert all(name in printed for name in FORMATS)


def test_knowing_the_formats_takes_no_framework() -> None:
    code = "import sys, acsp_lightning.cli.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
