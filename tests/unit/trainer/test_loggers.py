"""What loggers are given, by loggers that take notes; files of real ones are in test_logbook.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.records import step
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from matplotlib.figure import Figure

from acsp_lightning import PruningSettings
from acsp_lightning.trainer.loggers import log_cut, log_rolled_back, report_dir, takes_plots


class Noting(CSVLogger):
    def __init__(self) -> None:
        self.noted: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.noted.append((metrics, step))


class Broken(Noting):
    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        raise OSError("no connection")


def trainer(*loggers: Logger, first: bool = True) -> Any:
    return SimpleNamespace(loggers=list(loggers), is_global_zero=first, global_step=12)


def test_a_cut_is_logged_as_it_left_the_network() -> None:
    logger = Noting()
    log_cut(trainer(logger), step(before=6, after=3), {"channels": Figure()})
    assert logger.noted == [
        ({"acsp/flops": 30_000.0, "acsp/parameters": 3000.0, "acsp/channels/conv": 3.0}, 12)
    ]


def test_a_cut_that_is_rolled_back_is_logged_as_it_found_the_network() -> None:
    logger = Noting()
    log_rolled_back(trainer(logger), step(before=6, after=3, accuracy=0.75))
    ((scalars, _),) = logger.noted
    assert scalars == {
        "acsp/flops": 60_000.0,
        "acsp/parameters": 6000.0,
        "acsp/channels/conv": 6.0,
        "acsp/accuracy_straight_after": 0.75,
    }


def test_a_logger_that_fails_leaves_the_others_theirs() -> None:
    logger = Noting()
    with pytest.warns(UserWarning, match=r"Broken did not take .*\(OSError: no connection\)"):
        log_cut(trainer(Broken(), logger), step(), {})
    assert len(logger.noted) == 1


def test_the_first_process_logs_alone() -> None:
    logger = Noting()
    log_cut(trainer(logger, first=False), step(), {})
    log_rolled_back(trainer(logger, first=False), step())
    assert logger.noted == []


def test_plots_are_for_loggers_that_take_them(tmp_path: Any) -> None:
    assert not takes_plots(trainer())
    assert not takes_plots(trainer(Noting()))
    assert takes_plots(trainer(Noting(), TensorBoardLogger(tmp_path)))


def test_reports_are_beside_the_logs_unless_told_otherwise(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version=3)
    running = SimpleNamespace(logger=logger, default_root_dir="root")
    assert report_dir(running, PruningSettings()) == Path(logger.log_dir, "acsp")  # type: ignore[arg-type]
    running.logger = None
    assert report_dir(running, PruningSettings()) == Path("root/acsp")  # type: ignore[arg-type]
    assert report_dir(running, PruningSettings(report_dir="here")) == Path("here")  # type: ignore[arg-type]
