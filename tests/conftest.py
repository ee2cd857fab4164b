import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import Fit, train_loader, val_loader
from helpers.points import POINTS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=["cpu", "cuda"],
        help="where tests of a GPU run: on one, or as far as they can on the CPU; without it on a GPU "
        "if there is one",
    )


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test of a GPU runs."""
    return torch.device(request.config.getoption("device") or "cuda")


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """As above, of tests that the CPU cannot run."""
    if device.type == "cpu":
        pytest.skip("only a GPU has what this looks at")
    return device


APART = ("coverage", "fault", "processes", "recipes")  # markers of what takes long


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for; skip what needs a GPU that is missing.

    It is asked for by its marker or, but for the coverage of an hour, by naming its file.
    """
    if not torch.cuda.is_available() and config.getoption("device") != "cpu":
        skipped = pytest.mark.skip(reason="needs a GPU; --device cpu runs it as far as the CPU can")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skipped)
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]

    def is_apart(item: pytest.Item) -> bool:
        own = [marker for marker in APART if item.get_closest_marker(marker)]
        waiting = [marker for marker in own if marker not in config.option.markexpr]
        return "coverage" in waiting or (bool(waiting) and item.path not in named)

    long = [item for item in items if is_apart(item)]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture
def every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second moments and variances of maps over all of their positions, as oracles take them."""
    monkeypatch.setattr("acsp_lightning.structure.refit.POSITIONS", 64)
    monkeypatch.setattr("acsp_lightning.capture.hooks.INPUT_POSITIONS", 64)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What Lightning's logger is told, message by message."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, listener = logging.getLogger("lightning.pytorch"), Listener()
    logger.addHandler(listener)
    yield messages
    logger.removeHandler(listener)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Fit:
    """A quiet CPU trainer of three epochs in a fresh folder."""

    def make(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        quiet = {
            "max_epochs": 3,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})

    return make


@pytest.fixture
def fit(make_trainer: Fit) -> Fit:
    """Fit ``module`` with ``callbacks`` from seed 0; returns the trainer."""

    def run(
        module: pl.LightningModule,
        callbacks: Sequence[pl.Callback] = (),
        train: Any = None,
        val: Any = None,
        **options: Any,
    ) -> pl.Trainer:
        pl.seed_everything(0, verbose=False)
        trainer = make_trainer(*callbacks, **options)
        trainer.fit(
            module,
            train_loader() if train is None else train,
            val_loader() if val is None else val,
        )
        return trainer

    return run


@pytest.fixture(scope="session")
def distances_of():
    """Distances of n points of a kind: "jm", "clustered" or "noise"."""

    def make(kind, n, seed=0):
        points = POINTS[kind](n, seed)
        return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")

    return make
