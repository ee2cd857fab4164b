import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers.commands import refused, run
from helpers.records import step

from acsp_lightning.cli import main
from acsp_lightning.report import write_step

# LightningCLI would rather have sys.argv than arguments.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.mark.parametrize("words", [["report", "--help"], ["recipe", "--help"], ["--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 0
    assert "report" in capsys.readouterr().out or words[0] == "recipe"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run("--version")
    assert end.value.code == 0
    assert capsys.readouterr().out == f"acsp-lightning {version('acsp-lightning')}\n"


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


def imported_by(*words: str) -> set[str]:
    """Packages that a command has imported at its end."""
    code = (
        "import sys\nfrom acsp_lightning.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n"
        "    print('IMPORTED', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("IMPORTED "))
    assert "acsp_lightning" in line
    return set(line.split())


@pytest.mark.parametrize(
    "words",
    [
        ["recipe", "list"],
        ["--help"],
        ["report", "--help"],
        ["export", "--help"],
        ["recipe", "copy", "no"],
    ],
)
def test_starting_imports_no_framework(words: list[str]) -> None:
    assert not imported_by(*words) & {"torch", "lightning", "matplotlib", "jsonargparse"}


def test_a_report_needs_neither_lightning_nor_the_tracer(tmp_path: Path) -> None:
    folder = write_step(step(), tmp_path)
    found = imported_by("report", str(tmp_path))
    assert (folder / "report.html").exists()
    assert "torch" in found
    assert not found & {"lightning", "torch_pruning", "torchvision", "sklearn", "scipy"}


def test_classes_are_found_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    message = refused(capsys, "export", "no.ckpt", "--to", "onnx")
    assert "no.ckpt does not exist" in message
    assert sys.path[0] == str(tmp_path)
