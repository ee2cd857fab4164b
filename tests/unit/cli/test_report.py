"""Reports of a run, made again from its records."""

from pathlib import Path

import pytest
from helpers.commands import refused, run
from helpers.fits import Classifier, Fit, callback
from helpers.records import step

from acsp_lightning.report import write_step

# LightningCLI would rather have sys.argv than arguments.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


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
