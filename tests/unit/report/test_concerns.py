"""Thresholds by hand: chance among C classes plus one standard error of n samples, and half."""

from dataclasses import replace

import pytest
from helpers.records import network_times, step, trade_off, traded

from acsp_lightning import PruningStep
from acsp_lightning.functional import WidthReason
from acsp_lightning.report.concerns import concerns

CHANCE, LOSS = "which is chance among", "more than half of the accuracy"


def told(before: float | None, after: float | None, samples: int, classes: int) -> str:
    found = step()
    found = replace(
        found,
        accuracy_before=before,
        accuracy_after=after,
        samples=samples,
        comparison=replace(found.comparison, classes=classes),
    )
    messages = list(concerns(found))
    assert len(messages) < 2
    return messages[0] if messages else ""


@pytest.mark.parametrize(
    ("before", "samples", "classes", "at_chance"),
    [
        (0.13, 100, 10, True),  # 0.1 + sqrt(0.09 / 100) = 0.13
        (0.1301, 100, 10, False),
        (0.0, 100, 10, True),
        (0.515, 1000, 2, True),  # 0.5 + sqrt(0.25 / 1000) = 0.5158
        (0.516, 1000, 2, False),
        (0.1, 99, 10, False),
        (0.001, 99, 1000, False),
    ],
)
def test_a_network_at_chance(before: float, samples: int, classes: int, at_chance: bool) -> None:
    assert (CHANCE in told(before, 0.01, samples, classes)) is at_chance


@pytest.mark.parametrize(
    ("before", "after", "samples", "lost"),
    [
        (0.9, 0.449, 100, True),
        (0.9, 0.45, 100, False),
        (0.9, 0.1, 99, False),
        (0.9, 0.95, 100, False),
        (None, None, 100, False),
        (0.9, None, 100, False),
    ],
)
def test_a_cut_that_loses_more_than_half(
    before: float | None, after: float | None, samples: int, lost: bool
) -> None:
    assert (LOSS in told(before, after, samples, 10)) is lost


def test_the_numbers_are_shown() -> None:
    assert "9.8% of the validation samples rightly, which is chance among 10 classes" in told(
        0.098, 0.5, 300, 10
    )
    assert "90.0% of the validation samples were classified rightly before it, 12.5% are" in told(
        0.9, 0.125, 300, 10
    )


# -- a volume that could not be had ---------------------------------------------------------------------
def volume(found: PruningStep) -> list[str]:
    return [message for message in concerns(found) if CHANCE not in message and LOSS not in message]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (WidthReason.NO_MEASURED_KNEE, "has no knee: no accuracy is lost at any depth"),
        (WidthReason.NOTHING_TOLERATED, "loses more accuracy than selection.tolerance allows"),
    ],
)
def test_where_nothing_is_cut_the_reason_is_told(reason: WidthReason, words: str) -> None:
    (message,) = volume(traded(reason))
    assert words in message
    assert "every channel is kept" in message.lower()


@pytest.mark.parametrize(
    "reason", [WidthReason.MEASURED_KNEE, WidthReason.LEAST_DAMAGE, WidthReason.NETWORK_KNEE]
)
def test_a_volume_that_was_had_is_no_concern(reason: WidthReason) -> None:
    assert volume(traded(reason)) == []
    assert volume(replace(traded(reason), trade_off=None)) == []


@pytest.mark.parametrize(("place", "told"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_target_that_would_cost_more_than_is_tolerated(place: int, told: bool) -> None:
    """Tolerated is the third of five depths; it keeps two thirds of the FLOPs."""
    measured = replace(trade_off(), targets={"0.4": place, "0.3": 4}, requested="0.4")
    messages = volume(replace(traded(WidthReason.TOLERANCE), trade_off=measured))
    assert len(messages) == told
    if told:
        lost = {3: "20.00%", 4: "50.00%"}[place]
        assert f"flops=0.4 would cost {lost} ± 0.50% of accuracy" in messages[0]
        assert "the cut stops at 66.7% of the FLOPs" in messages[0]


def test_a_tolerance_alone_is_no_concern() -> None:
    """Neither are depths beyond it that were only to be shown."""
    found = replace(traded(WidthReason.TOLERANCE), trade_off=replace(trade_off(), targets={}))
    assert volume(found) == []
    shown = replace(trade_off(), targets={"0.4": 3, "0.3": 4})
    assert volume(replace(found, trade_off=shown)) == []


def test_a_knee_at_the_uncut_network_is_told() -> None:
    found = replace(traded(), trade_off=replace(trade_off(), knee=0))
    (message,) = volume(found)
    assert "Every measured cut loses more than 1.5% of accuracy; every channel is kept" in message


@pytest.mark.parametrize(("after", "told"), [(0.0219, False), (0.0221, True)])
def test_a_target_in_time_that_was_missed_by_a_tenth(after: float, told: bool) -> None:
    found = traded(WidthReason.LEAST_DAMAGE_IN_TIME)
    messages = list(concerns(replace(found, times=network_times(after=after))))
    assert any("latency=0.5 was not met within 10%: of 2 networks" in text for text in messages) == told
    given = traded(WidthReason.HALVED)
    assert not list(concerns(replace(given, times=network_times(after=after))))


def test_a_tolerance_that_stops_short_of_a_target_in_time() -> None:
    found = replace(traded(WidthReason.TOLERANCE), times=network_times())
    assert found.trade_off is not None
    deeper = replace(found, trade_off=replace(found.trade_off, in_time=3))
    (message,) = concerns(deeper)
    assert message.startswith("latency=0.5 would cost 20.00% ± 0.50% of accuracy")
    assert message.endswith("or leave latency out.")
    met = replace(found, trade_off=replace(found.trade_off, in_time=2))
    assert not list(concerns(met))


def test_of_a_part_of_the_planned_cut_no_target_is_missed() -> None:
    found = traded(WidthReason.LEAST_DAMAGE_IN_TIME)
    part = replace(network_times(after=0.039), checks=network_times().checks)
    assert not list(concerns(replace(found, times=part)))
