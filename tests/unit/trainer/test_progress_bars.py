"""Long steps are shown where bars are, and nowhere else."""

import io
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.fits import Classifier, Fit, callback
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from acsp_lightning.trainer.progress_bars import display_of

STEPS = {
    "Comparing channels": 3,
    "Clustering channels": 3,
    "Looking at channels": 3,
    "Refitting layers": 3,
}


def console_of(fit: Fit, bar: ProgressBar, **options: Any) -> str:
    sink = io.StringIO()
    with redirect_stderr(sink), redirect_stdout(sink):
        fit(Classifier(), [callback(report_plots=True), bar], **options)
    return sink.getvalue()


@pytest.mark.parametrize("name", STEPS)
def test_beside_lightnings_own_bars(fit: Fit, name: str) -> None:
    assert name in console_of(fit, TQDMProgressBar(), enable_progress_bar=True)
    rich = RichProgressBar(console_kwargs={"force_terminal": True, "width": 100})
    assert name in console_of(fit, rich, enable_progress_bar=True)


def test_quiet_on_other_ranks() -> None:
    bar = TQDMProgressBar()
    ranks = [SimpleNamespace(is_global_zero=rank == 0, progress_bar_callback=bar) for rank in range(2)]
    assert [display_of(trainer) is None for trainer in ranks] == [False, True]


class Silent(ProgressBar):
    def disable(self) -> None:
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"callbacks": [], "enable_progress_bar": False},
        {"callbacks": [Silent()]},
        {"callbacks": [TQDMProgressBar(refresh_rate=0)]},
    ],
)
def test_quiet_where_there_is_no_bar(
    fit: Fit, capfd: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    callbacks = [callback(), *options["callbacks"]]
    fit(Classifier(), callbacks, enable_progress_bar=options.get("enable_progress_bar", True))
    found = capfd.readouterr()
    assert not any(name in found.out + found.err for name in STEPS)
