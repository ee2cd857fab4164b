"""Thresholds by hand: chance among C classes plus one standard error of n samples, and half."""

from dataclasses import replace

import pytest
from helpers.records import step

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
    assert "9.8% of the captured samples rightly, which is chance among 10 classes" in told(
        0.098, 0.5, 300, 10
    )
    assert "90.0% of the captured samples were classified rightly before it, 12.5% are" in told(
        0.9, 0.125, 300, 10
    )
