"""Subcommands without a configuration."""

from pathlib import Path

import pytest
import yaml
from helpers import Classifier, Fit, callback
from steps import step

from acsp_lightning.cli import main
from acsp_lightning.report import write_step

# LightningCLI would rather have sys.argv than arguments.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

RECIPES = Path(__file__).parents[1] / "recipes"


def run(*words: object) -> None:
    main([*map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_all_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    run("recipe", "list")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert all(len(line.split()) > 3 for line in lines)


def test_a_recipe_is_copied_to_be_edited(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("recipe", "copy", "digits_vgg")
    assert "acsp-lightning fit --config digits_vgg.yaml" in capsys.readouterr().out
    assert Path("digits_vgg.yaml").read_text() == (RECIPES / "digits_vgg.yaml").read_text()
    run("recipe", "copy", "cifar10_resnet56", tmp_path / "mine.yaml")
    assert yaml.safe_load(Path("mine.yaml").read_text())["model"]

    Path("mine.yaml").write_text("edited")
    message = refused(capsys, "recipe", "copy", "digits_vgg", "mine.yaml")
    assert "mine.yaml exists already; name another file" in message
    assert Path("mine.yaml").read_text() == "edited"
    assert "there is no recipe 'digits'; there are " in refused(capsys, "recipe", "copy", "digits")
    assert "nowhere/a.yaml cannot be written: No such file" in refused(
        capsys, "recipe", "copy", "digits_vgg", "nowhere/a.yaml"
    )


def test_a_report_is_made_again(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Classifier(), [callback(0, 1, report_plots=True, report_dir=tmp_path / "acsp")])
    pages = [tmp_path / "acsp" / f"cut_after_epoch_{epoch}" / "report.html" for epoch in (0, 1)]
    before = [page.read_text() for page in pages]
    for page in pages:
        page.unlink()
    run("report", tmp_path)
    assert capsys.readouterr().out.splitlines() == [str(page) for page in pages]
    assert [page.read_text() for page in pages] == before


def test_runs_that_cannot_be_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nothing was cut there" in refused(capsys, "report", tmp_path)
    assert "nowhere does not exist" in refused(capsys, "report", tmp_path / "nowhere")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text("{}")
    good = write_step(step(), tmp_path / "good")
    message = refused(capsys, "report", tmp_path)
    assert message.count("report.json is no record of a cut") == 2
    assert (good / "report.html").exists(), "one that is broken leaves the others alone"


def test_a_folder_that_is_a_file(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Classifier(), [callback(report_dir=tmp_path / "acsp")])
    (tmp_path / "acsp" / "cut_after_epoch_0" / "report.html").mkdir()
    assert "report.html is a folder" in refused(capsys, "report", tmp_path)


@pytest.mark.parametrize("words", [["report", "--help"], ["recipe", "--help"], ["--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 0
    assert "report" in capsys.readouterr().out or words[0] == "recipe"
