import sys

import pytest
from helpers.commands import refused, run

from acsp_lightning.cli import main

# LightningCLI would rather have sys.argv than arguments.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.mark.parametrize("words", [["report", "--help"], ["recipe", "--help"], ["--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 0
    assert "report" in capsys.readouterr().out or words[0] == "recipe"


@pytest.mark.parametrize("command", ["report", "export", "recipe"])
def test_words_go_to_the_command_that_is_named(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[list[str]] = []
    monkeypatch.setattr(f"acsp_lightning.cli.{command}.main", heard.append)
    run(command, "runs/1", "--flag")
    monkeypatch.setattr(sys, "argv", ["acsp-lightning", command, "--help"])
    main()
    assert heard == [["runs/1", "--flag"], ["--help"]]


def test_an_unknown_command_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "prune")
    assert "prune" in message
    assert all(command in message for command in ("fit", "validate", "test", "predict", "preview"))
