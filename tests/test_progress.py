"""Long steps are shown where bars are, and nowhere else."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import HALF, Classifier, Fit, callback, val_loader
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from acsp_lightning import SelectionConfig, preview
from acsp_lightning.progress import shown_by, step, tracked
from acsp_lightning.trainer.progress_bars import display_of

STEPS = {
    "Comparing channels": 3,
    "Clustering channels": 3,
    "Looking at channels": 3,
    "Refitting layers": 3,
}


class Recorder:
    """Notes every step, and how far it came."""

    def __init__(self) -> None:
        self.steps: list[list[Any]] = []

    @contextmanager
    def __call__(self, name: str, parts: int) -> Iterator[Callable[[], None]]:
        entry = [name, parts, 0]
        self.steps.append(entry)

        def advance() -> None:
            entry[2] += 1

        yield advance


def test_nobody_looks_by_default() -> None:
    with step("anything", 3) as advance:
        advance()
    assert list(tracked([1, 2], "anything")) == [1, 2]


def test_the_display_hears_of_every_part_and_only_inside() -> None:
    recorder = Recorder()
    with shown_by(recorder):
        assert list(tracked("abc", "letters")) == ["a", "b", "c"]
        with step("left early", 2) as advance:
            advance()
    list(tracked("de", "later"))
    assert recorder.steps == [["letters", 3, 3], ["left early", 2, 1]]


@pytest.mark.parametrize("selection", [HALF, SelectionConfig(flops=0.6)])
def test_the_long_steps_of_a_cut(selection: SelectionConfig) -> None:
    recorder = Recorder()
    with shown_by(recorder):
        preview(Classifier(), val_loader(), selection)
    found = {name: parts for name, parts, _ in recorder.steps}
    assert found.items() >= {(name, STEPS[name]) for name in list(STEPS)[:2]}
    assert all(1 <= found[name] <= STEPS[name] for name in STEPS)  # of layers that lose channels
    assert ("Weighing widths" in found) == (selection is not HALF)
    assert all(done == parts for name, parts, done in recorder.steps if name in STEPS)
    assert recorder.steps[0] == ["Capturing activations", 3, 3]


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
