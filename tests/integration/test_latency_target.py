"""A share of the time as the target of previews and fits, on a clock without noise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import clockwork
from helpers.fits import callback, conv_net, job, same_state, snapshot, val_loader

from acsp_lightning import LatencyAt, PruningStep, SelectionConfig, apply_plan, preview
from acsp_lightning.functional import WidthReason
from acsp_lightning.report import find_records, read_step
from acsp_lightning.report.concerns import concerns

SELECTION = SelectionConfig(latency=0.7, curve="damage")


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.set_clock(monkeypatch)
    monkeypatch.setattr(clockwork, "BLOCK_IN", 1)
    monkeypatch.setattr(clockwork, "BLOCK_OUT", 2)


def met(share: float) -> bool:
    """Whether a share is near the target, as near as layers of six to ten channels come."""
    return 0.6 <= share <= 0.72


def true_share(step: PruningStep, batch: int = 1) -> float:
    model = conv_net().eval()
    images = torch.rand(batch, 1, 6, 6)
    before = clockwork.network_seconds(model, (images,))
    apply_plan(model, step.plan)
    return clockwork.network_seconds(model, (images,)) / before


def test_a_preview_meets_the_target_on_the_network_that_is_cut() -> None:
    model = conv_net()
    before = snapshot(model)
    step = preview(model, val_loader(), SELECTION, latency_at=LatencyAt(batch_size=4))
    assert same_state(snapshot(model), before)
    assert step.times is not None
    assert step.times.share == pytest.approx(true_share(step, 4))
    assert met(step.times.share)
    assert {chosen.reason for chosen in step.selections.values()} == {WidthReason.LEAST_DAMAGE_IN_TIME}
    assert not list(concerns(step))


def test_a_preview_of_a_network_that_is_fast_enough_changes_nothing() -> None:
    step = preview(conv_net(), val_loader(), SelectionConfig(latency=1.0, curve="damage"))
    assert not step.plan.cuts
    assert step.times is not None
    assert step.times.share == 1


def test_what_cannot_be_reached_is_refused() -> None:
    with pytest.raises(ValueError, match=r"latency=0\.01 asks for .* Raise latency"):
        preview(conv_net(), val_loader(), SelectionConfig(latency=0.01))


def test_over_two_cuts_the_share_is_that_of_the_first_network(make_trainer: Any, tmp_path: Path) -> None:
    pruning = callback(0, 1, selection=SELECTION, report_dir=tmp_path)
    job(make_trainer, pruning, max_epochs=4)
    first, second = (step.times for step in pruning.steps)
    assert first is not None
    assert second is not None
    assert first.taken == 1
    assert second.taken == first.reached
    assert met(second.reached)
    stored = json.loads((tmp_path / "times.json").read_text())
    assert any(key.startswith("Conv2d(") for key in stored["seconds"])
    records = [read_step(folder) for folder in find_records(tmp_path)]
    assert sorted(step.epoch or 0 for step in records) == [0, 1]
    assert {step.epoch: step.times for step in records} == {0: first, 1: second}


def test_times_that_are_stored_are_not_taken_again(
    make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(make_trainer, callback(selection=SELECTION, report_dir=tmp_path), max_epochs=2)

    def fail(*_: Any) -> float:
        raise AssertionError("a layer was timed again")

    timer = clockwork.network_seconds
    clockwork.set_clock(
        monkeypatch,
        lambda network, arguments: (timer if list(network.children()) else fail)(network, arguments),
    )
    again = callback(selection=SELECTION, report_dir=tmp_path)
    job(make_trainer, again, max_epochs=2)
    assert len(again.steps) == 1


def test_a_single_layer_is_cut_to_its_part_of_the_target(make_trainer: Any) -> None:
    pruning = callback(0, 1, 2, selection=SELECTION, layers_per_epoch=1)
    job(make_trainer, pruning, max_epochs=5)
    reached = [step.times.reached for step in pruning.steps if step.times is not None]
    assert len(reached) == 3
    assert reached == sorted(reached, reverse=True)
    assert met(reached[-1])


def test_the_callback_takes_conditions_as_a_dict() -> None:
    pruning = callback(selection={"latency": 0.7}, latency_at={"batch_size": 8})
    assert pruning.latency_at == LatencyAt(batch_size=8)
    with pytest.raises(ValueError, match=r"latency_at is \{'batch': 8\}, not the fields of a LatencyAt"):
        callback(latency_at={"batch": 8})
    with pytest.raises(TypeError, match="latency belongs in selection=SelectionConfig"):
        callback(latency=0.5)
