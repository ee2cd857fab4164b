"""Long steps are shown where bars are, and nowhere else."""

import io
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers.fits import Classifier, Fit, callback, train_loader, val_loader
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from acsp_lightning.trainer.progress_bars import display_of

STEPS = {
    "Weighing channels": 3,
    "Looking at channels": 3,
    "Refitting layers": 3,
}


@pytest.fixture(scope="module")
def consoles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a fit prints beside a bar of either kind."""
    rich = RichProgressBar(console_kwargs={"force_terminal": True, "width": 100})
    found = []
    for bar in (TQDMProgressBar(), rich):
        sink = io.StringIO()
        with redirect_stderr(sink), redirect_stdout(sink):
            trainer = pl.Trainer(
                max_epochs=2,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                default_root_dir=tmp_path_factory.mktemp("fit"),
                callbacks=[callback(), bar],
            )
            trainer.fit(Classifier(), train_loader(), val_loader())
        found.append(sink.getvalue())
    return found


@pytest.mark.parametrize("name", STEPS)
def test_beside_lightnings_own_bars(consoles: list[str], name: str) -> None:
    for console in consoles:
        assert name in console


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
