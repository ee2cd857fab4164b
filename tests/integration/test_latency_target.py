"""A share of the time as the target of previews and fits, on a clock without noise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import clockwork
from helpers.compiled import Backend, compile_in_place
from helpers.fits import (
    CLASSES,
    Classifier,
    Fit,
    Saver,
    Scripted,
    callback,
    conv_net,
    job,
    only_whole,
    same_state,
    snapshot,
    val_loader,
)
from torch import nn

from acsp_lightning import (
    Guard,
    LatencyAt,
    PruningSettings,
    PruningStep,
    SelectionConfig,
    apply_plan,
    preview,
)
from acsp_lightning.functional import WidthReason
from acsp_lightning.measure import latency
from acsp_lightning.report import find_records, read_step, step_table, trade_off_table
from acsp_lightning.report.concerns import concerns
from acsp_lightning.report.step import Outcome
from acsp_lightning.report.times import milliseconds
from acsp_lightning.selection import clock
from acsp_lightning.selection.time_target import profile
from acsp_lightning.structure.example import Example
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups

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
    in_fit = any(cut.layer.startswith("net.") for cut in step.plan)
    model = (Classifier() if in_fit else conv_net()).eval()
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
    stored = json.loads((tmp_path / "layer_times.json").read_text())
    assert any(key.startswith("Conv2d(") for key in stored["layers"])
    records = [read_step(folder) for folder in find_records(tmp_path)]
    assert sorted(step.epoch or 0 for step in records) == [0, 1]
    assert {step.epoch: step.times for step in records} == {0: first, 1: second}


def no_layer(network: Any, arguments: Any) -> float:
    """Times networks only."""
    assert list(network.children()), "a layer was timed again"
    return clockwork.network_seconds(network, arguments)


def test_times_that_are_stored_are_not_taken_again(
    make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(make_trainer, callback(selection=SELECTION, report_dir=tmp_path), max_epochs=2)
    monkeypatch.setitem(latency.TIMERS, "cpu", no_layer)
    again = callback(selection=SELECTION, report_dir=tmp_path)
    job(make_trainer, again, max_epochs=2)
    assert len(again.steps) == 1
    # The weights differ, and the shapes do not; at other depths layers are of other shapes.
    with pytest.raises(AssertionError, match="a layer was timed again"):
        preview(conv_net(), val_loader(), SELECTION, report_dir=tmp_path, round_to=3)


def test_a_second_preview_takes_no_time_of_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = preview(conv_net(), val_loader(), SELECTION, report_dir=tmp_path)
    monkeypatch.setitem(latency.TIMERS, "cpu", no_layer)
    again = preview(conv_net(), val_loader(), SELECTION, report_dir=tmp_path)
    assert first.plan == again.plan


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


# -- before training ---------------------------------------------------------------------------------
def test_what_cannot_be_reached_is_refused_before_training(fit: Fit) -> None:
    module = Classifier()
    pruning = callback(selection=SelectionConfig(latency=0.05))
    with pytest.raises(ValueError, match=r"latency=0\.05 asks for .* Raise latency"):
        fit(module, [pruning])
    assert module.steps == 0


def test_what_noise_would_hide_is_refused_before_training(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = iter(range(10**6))
    # Of one network after the other, with a pass ahead of every turn.
    factors = (1.0, 0.5, 1.0, 0.3, 1.0, 0.7, 1.0, 1.2)
    monkeypatch.setitem(latency.TIMERS, "cpu", lambda *_: 1e-3 * factors[next(passes) // 4 % 8])
    monkeypatch.setattr(clock, "PATIENCE", 0.0)
    monkeypatch.setattr(clock, "FEWEST_PASSES", 12)
    module = Classifier()
    with pytest.raises(ValueError, match=r"is to save 0\.05 of 1 ms a pass, but .* is known to ±"):
        fit(module, [callback(selection=SelectionConfig(latency=0.95))])
    assert module.steps == 0


# -- with other options ------------------------------------------------------------------------------
def test_a_cut_that_is_rolled_back_counts_for_nothing(fit: Fit) -> None:
    selection = SelectionConfig(latency=0.9, curve="damage")
    guard = Guard(0.1, "quality")
    pruning = callback(0, selection=selection, guard=guard, include=["net.conv1"], recovery="none")
    fit(Scripted(only_whole), [pruning], max_epochs=4)
    first, second = pruning.steps
    assert first.verdict is not None
    assert first.verdict.outcome is Outcome.HALVED
    assert first.times is not None
    assert second.times is not None
    assert second.times.taken == 1
    assert (second.times.predicted, second.times.checks) == (None, ())
    assert first.times.share < second.times.share < 1
    assert second.times.share == pytest.approx(true_share(second))
    assert not list(concerns(second)), "half of the depth was not asked to meet the target"


def test_within_a_tolerance_the_cut_stops_short_of_the_target() -> None:
    """On labels that are what the network says, so that every cut costs."""
    model = conv_net().eval()
    images = torch.randn(720, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.fc2.bias -= model(images).mean(0)  # or one class would be all
        labels = model(images).argmax(1)
    batches = list(zip(images.split(60), labels.split(60), strict=True))
    assert labels.unique().numel() == CLASSES
    selection = SelectionConfig(latency=0.62, tolerance=0.25)
    with pytest.warns(UserWarning, match=r"latency=0\.62 would cost .* or leave latency out"):
        step = preview(model, batches, selection)
    assert step.times is not None
    assert 0.65 < step.times.share < 1
    assert {chosen.reason for chosen in step.selections.values()} == {WidthReason.TOLERANCE}
    assert step.times.share == pytest.approx(true_share(step))


@pytest.mark.filterwarnings("ignore:.*which is chance among")
def test_a_trade_off_has_milliseconds_beside_flops() -> None:
    step = preview(conv_net(), val_loader(480), SELECTION, trade_off=[0.5])
    assert step.trade_off is not None
    depths = step.trade_off.depths
    assert step.trade_off.in_time is not None
    lines = [line.split() for line in trade_off_table(step.trade_off).splitlines()]
    rows = [line for line in lines if line and line[0].endswith("%")]
    assert len(rows) == len(depths)
    for row, depth in zip(rows, depths, strict=True):
        cut = conv_net().eval()
        groups = trace_groups(cut, (torch.rand(2, 1, 6, 6),)).groups
        apply_plan(cut, build_plan(groups, {name: range(k) for name, k in depth.widths.items()}))
        truth = clockwork.network_seconds(cut, (torch.rand(1, 1, 6, 6),))
        assert depth.seconds == pytest.approx(truth, rel=0.1)
        assert row[1] == milliseconds(depth.seconds or 0.0)
    assert rows[step.trade_off.in_time][-1] == "latency"


def test_a_compiled_module_is_timed_as_it_was_written(fit: Fit) -> None:
    pruning = callback(selection=SELECTION)
    fit(compile_in_place(Classifier(), Backend()), [pruning])
    (step,) = pruning.steps
    assert step.times is not None
    assert step.times.share == pytest.approx(true_share(step))
    assert met(step.times.share)


def test_images_with_channels_last() -> None:
    at = LatencyAt(batch_size=4, channels_last=True, precision="bfloat16")
    step = preview(conv_net(), val_loader(), SELECTION, latency_at=at)
    assert step.times is not None
    assert step.times.share == pytest.approx(true_share(step, 4))
    assert step.times.at == at
    assert "batch 4, channels last, bfloat16" in " ".join(step_table(step).split())


@pytest.mark.parametrize("moment", ["epoch0-end", "epoch1-batch0", "epoch1-end"])
def test_interrupted_equals_uninterrupted(make_trainer: Fit, tmp_path: Path, moment: str) -> None:
    def pruning() -> Any:
        return callback(0, 1, selection=SELECTION)

    whole = job(make_trainer, pruning(), Saver(tmp_path), max_epochs=4)
    resumed = job(make_trainer, pruning(), max_epochs=4, ckpt_path=tmp_path / f"{moment}.ckpt")
    assert resumed["widths"] == whole["widths"]
    for mine, other in zip(resumed["steps"], whole["steps"], strict=True):
        assert mine["times"]["taken"] == other["times"]["taken"]
        assert mine["times"]["before"]["median"] == pytest.approx(other["times"]["before"]["median"])


# -- times of another machine ------------------------------------------------------------------------
@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Written where the other clock of these tests goes."""
    model = Classifier()
    example = Example.of(model, next(iter(val_loader()))[0])
    groups = trace_groups(model, example.traced).groups
    path = tmp_path / "there.json"
    profile(model, groups, example.counted, PruningSettings()).write(path)
    return path


def test_a_fit_meets_the_time_of_another_machine(
    fit: Fit, table: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nothing(*_: Any) -> float:
        raise AssertionError("nothing is timed here")

    monkeypatch.setitem(latency.TIMERS, "cpu", nothing)
    pruning = callback(selection=SELECTION, latency_table=table, report_dir=tmp_path)
    fit(Classifier(), [pruning])
    (step,) = pruning.steps
    assert step.times is not None
    assert step.times.share == pytest.approx(true_share(step), rel=0.05)
    assert met(true_share(step))
    assert {chosen.reason for chosen in step.selections.values()} == {WidthReason.LEAST_DAMAGE_IN_TIME}
    assert "there.json" in step_table(step)
    (record,) = find_records(tmp_path)
    assert read_step(record).times == step.times
    assert not (tmp_path / "layer_times.json").exists()


def test_a_table_that_does_not_fit_is_refused_before_training(fit: Fit, table: Path) -> None:
    module = Classifier()
    with pytest.raises(ValueError, match=r"has no time of .* acsp-lightning profile"):
        fit(module, [callback(selection=SELECTION, latency_table=table, round_to=3)])
    wider = Classifier(nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 3)))
    with pytest.raises(ValueError, match=r"has no time of Conv2d"):
        fit(wider, [callback(selection=SELECTION, latency_table=table)])
    assert module.steps == wider.steps == 0
    with pytest.raises(ValueError, match=r"epochs is \[0, 1\], and latency_table=.* Cut once"):
        callback(0, 1, selection=SELECTION, latency_table=table)


def test_a_fit_that_goes_on_before_its_first_cut_is_checked_anew(
    make_trainer: Fit, table: Path, tmp_path: Path
) -> None:
    """On a machine that lacks the table, or is another one."""
    pruning = callback(1, selection=SELECTION, latency_table=table)
    job(make_trainer, pruning, Saver(tmp_path), max_epochs=3)
    table.unlink()
    again = callback(1, selection=SELECTION, latency_table=table)
    with pytest.raises(ValueError, match=r"latency_table=.*there\.json cannot be read"):
        job(make_trainer, again, max_epochs=3, ckpt_path=tmp_path / "epoch0-end.ckpt")
    assert not again.steps
    job(make_trainer, again, max_epochs=3, ckpt_path=tmp_path / "epoch2-end.ckpt")
