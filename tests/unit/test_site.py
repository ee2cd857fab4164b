"""A running fit and a copy of a network are both places where a cut can be made."""

import inspect
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers.fits import HALF, Classifier, Fit, same_state, snapshot, val_loader, widths

from acsp_lightning import PruningSettings
from acsp_lightning.pipeline import capture_network, make_cut
from acsp_lightning.previewing import CopySite
from acsp_lightning.site import Site
from acsp_lightning.trainer.cut import FitSite

SETTINGS = PruningSettings(selection=HALF, recovery="fold")
MEMBERS = [name for name in vars(Site) if not name.startswith("_")]


def test_what_a_site_has_is_known() -> None:
    """The list below is taken from the class itself; it must not be empty by accident."""
    assert {"network", "batches", "prune", "on_rank_zero", "inform", "warn"} <= set(MEMBERS)


@pytest.mark.parametrize("site", [FitSite, CopySite])
@pytest.mark.parametrize("name", MEMBERS)
def test_both_have_it_with_the_same_arguments(site: Any, name: str) -> None:
    expected = inspect.getattr_static(Site, name)
    if isinstance(expected, property):
        declared = {**vars(site), **dict.fromkeys(inspect.signature(site).parameters)}
        assert name in declared
    else:
        found = inspect.getattr_static(site, name)
        assert list(inspect.signature(found).parameters) == list(inspect.signature(expected).parameters)


class AtSecondEpoch(pl.Callback):
    def __init__(self, work: Callable[[pl.Trainer], None]) -> None:
        self.work = work

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            self.work(trainer)


def test_the_pipeline_does_the_same_at_both(fit: Fit) -> None:
    """On one network, with one capture: the same record, the one cut in place and the other not."""
    seen: list[Any] = []

    def work(trainer: pl.Trainer) -> None:
        module = trainer.lightning_module
        example, captured = capture_network(module, list(val_loader()), SETTINGS)
        before = snapshot(module)
        there = CopySite(module, list(val_loader()))
        preview = make_cut(there, captured, SETTINGS, example)
        assert same_state(snapshot(module), before)
        here = FitSite(trainer, SETTINGS)
        step = make_cut(here, captured, SETTINGS, example)
        assert widths(module)["net.conv1"] == 4
        assert here.is_cut
        for site in (there, here):
            assert site.is_rank_zero
            assert not site.is_averaged
            assert site.on_all_ranks(lambda: 3) == [3]
            assert site.on_rank_zero(lambda: 4) == 4
            assert site.processes == 1
            assert site.to_rank_zero(7) == [7]
            assert site.spread("Counting", [lambda: 5, lambda: 6], [1.0, 2.0]) == [5, 6]
            assert len(list(site.batches())) == 3
        seen.append((step.to_dict(), preview.to_dict()))

    fit(Classifier(), [AtSecondEpoch(work)])
    ((step, preview),) = seen
    assert step == preview
