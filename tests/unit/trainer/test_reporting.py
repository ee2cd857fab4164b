from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.records import step
from lightning.pytorch.loggers import CSVLogger

from acsp_lightning import PruningSettings, PruningStep
from acsp_lightning.functional import WidthReason
from acsp_lightning.report.step import Outcome, Verdict
from acsp_lightning.trainer import reporting

BARE = PruningSettings(report_plots=False)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        usual = {
            "is_global_zero": True,
            "logger": None,
            "loggers": [],
            "default_root_dir": str(tmp_path / "root"),
            "global_step": 3,
            "should_stop": False,
        }
        return SimpleNamespace(**{**usual, **options})

    return make


def judged(outcome: Outcome) -> PruningStep:
    return replace(step(), verdict=Verdict("val_acc", 0.75, 0.5, outcome))


def test_the_report_lies_where_users_look_for_it(trainer: Callable[..., Any], tmp_path: Path) -> None:
    """In the folder that was asked for, else the logger's, else the Trainer's."""
    logger = CSVLogger(tmp_path / "logs", name="run", version=2)
    places = {
        tmp_path / "mine": (trainer(logger=logger), replace(BARE, report_dir=tmp_path / "mine")),
        tmp_path / "logs" / "run" / "version_2" / "acsp": (trainer(logger=logger), BARE),
        tmp_path / "root" / "acsp": (trainer(), BARE),
    }
    for folder, (fit, settings) in places.items():
        reporting.write_cut_report(fit, step(epoch=4), settings)
        assert (folder / "cut_after_epoch_4" / "report.json").is_file()
    found = {path.parents[1] for path in tmp_path.rglob("report.json")}
    assert found == set(places)


def test_the_first_process_writes_alone(trainer: Callable[..., Any], tmp_path: Path) -> None:
    reporting.write_cut_report(trainer(is_global_zero=False), step(), BARE)
    assert not list(tmp_path.rglob("report.json"))


def test_a_report_that_cannot_be_written_costs_a_warning(
    trainer: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    settings = PruningSettings(report_plots=False, report_dir=tmp_path / "taken")
    with pytest.warns(UserWarning, match=r"could not be written to .*taken.*goes on without it"):
        reporting.write_cut_report(trainer(), step(), settings)


def test_layers_without_a_knee_are_named(trainer: Callable[..., Any], logged: list[str]) -> None:
    whole = {n: replace(s, reason=WidthReason.NO_KNEE) for n, s in step().selections.items()}
    with pytest.warns(UserWarning, match="The curve of conv has no knee"):
        reporting.announce_cut(trainer(), replace(step(), selections=whole), BARE)
    assert sum("Cut after epoch 4" in message for message in logged) == 1


def test_a_network_without_a_knee_is_told_once(trainer: Callable[..., Any]) -> None:
    whole = {n: replace(s, reason=WidthReason.NO_NETWORK_KNEE) for n, s in step().selections.items()}
    with pytest.warns(UserWarning, match="no knee") as caught:
        reporting.announce_cut(trainer(), replace(step(), selections=whole), BARE)
    assert len(caught) == 1


def test_a_cut_that_nobody_judged_is_told(trainer: Callable[..., Any], logged: list[str]) -> None:
    with pytest.warns(UserWarning, match="before the cut after epoch 4 could be judged; it stays"):
        reporting.announce_verdict(trainer(), judged(Outcome.UNJUDGED), BARE)
    reporting.announce_verdict(trainer(), judged(Outcome.RECOVERED), BARE)
    assert sum("val_acc" in message for message in logged) == 2


@pytest.mark.parametrize(
    ("stopped", "advice"),
    [(True, r"stopped it \(trainer.should_stop; EarlyStopping\?\)"), (False, "Train longer")],
)
def test_cuts_that_were_never_made_are_named(
    trainer: Callable[..., Any], stopped: bool, advice: str
) -> None:
    fit = trainer(should_stop=stopped)
    reporting.warn_of_missed(fit, [])
    with pytest.warns(UserWarning, match=rf"No cut was made after epoch 2, 5:.*{advice}"):
        reporting.warn_of_missed(fit, {5, 2})


def test_the_path_of_a_report_is_told_once(
    trainer: Callable[..., Any], tmp_path: Path, logged: list[str]
) -> None:
    settings = PruningSettings(report_dir=tmp_path)
    reporting.write_cut_report(trainer(), step(), settings)
    reporting.announce_verdict(trainer(), judged(Outcome.RECOVERED), settings)
    assert sum(message.startswith("Report: ") for message in logged) == 1
    assert "recovered" in (tmp_path / "cut_after_epoch_4" / "report.html").read_text()
