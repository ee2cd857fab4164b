"""How many samples tell a drop from noise, by simulation; and who is told that there are too few."""

import re

import numpy as np
import pytest
import torch

from acsp_lightning import PruningSettings, SelectionConfig
from acsp_lightning.measure.fidelity import compare_scores
from acsp_lightning.selection.holdback import (
    LEAST_SAMPLES,
    enough_to_measure,
    needed_for,
    share_to_hold_back,
)


def settings(measured: int = 1024, **options: object) -> PruningSettings:
    return PruningSettings(selection=SelectionConfig(**options), measured_samples=measured)  # type: ignore[arg-type]


def one_hot(classes: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 2).double()


@pytest.mark.parametrize("tolerance", [0.01, 0.03, 0.07])
def test_the_number_needed_tells_such_a_drop_from_noise(tolerance: float) -> None:
    """The measured error of a drop of the tolerance is half of it, and more with a few samples less."""
    random, errors = np.random.default_rng(0), {}
    for samples in (needed_for(tolerance), needed_for(tolerance) // 2):
        found = []
        for _ in range(300):
            wrong = (random.random(samples) < tolerance).astype(int)
            uncut, cut = one_hot(np.zeros(samples, int)), one_hot(wrong)
            found.append(compare_scores(uncut, cut, torch.zeros(samples).long()).drop.error)
        errors[samples] = np.sqrt(np.mean(np.square(found)))
    enough, half = errors.values()
    assert enough == pytest.approx(tolerance / 2, rel=0.05)
    assert half > 0.6 * tolerance


@pytest.mark.parametrize(
    ("tolerance", "samples"),
    [(0.01, 396), (0.03, 130), (0.001, 3996), (0.5, LEAST_SAMPLES), (0.9, LEAST_SAMPLES), (0, 50)],
)
def test_numbers_needed(tolerance: float, samples: int) -> None:
    assert needed_for(tolerance) == samples


@pytest.mark.parametrize(
    "options", [{"flops": 0.5}, {"keep": 0.5}, {"curve": "damage"}, {"curve": "mss"}]
)
@pytest.mark.parametrize("scored", [True, False])
def test_nothing_is_held_back_where_nothing_is_measured(
    options: dict[str, object], scored: bool
) -> None:
    assert share_to_hold_back(10_000, scored, settings(**options)) == (0.0, None)


@pytest.mark.parametrize(
    ("options", "held"),
    [({"flops": 0.5}, 100), ({"curve": "damage"}, 100), ({"keep": 0.5}, 0), ({"curve": "coverage"}, 0)],
)
def test_a_trade_off_that_is_asked_for_is_measured_along_any_path(
    options: dict[str, object], held: int
) -> None:
    share, warned = share_to_hold_back(200, True, settings(**options), anyway=True)
    assert share * 200 == held
    assert warned is None


@pytest.mark.parametrize(
    ("samples", "share"), [(100, 0.5), (2048, 0.5), (4096, 0.25), (10**6, 0.001024)]
)
def test_half_is_held_back_and_of_many_what_is_measured(samples: int, share: float) -> None:
    for options in ({}, {"tolerance": 0.3}, {"tolerance": 0.3, "flops": 0.5}):
        assert share_to_hold_back(samples, True, settings(**options)) == (share, None)


# -- refusals and warnings ----------------------------------------------------------
def test_a_tolerance_without_class_scores_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no class scores.*selection.tolerance=0.01 asks.*read_outputs="
    ):
        share_to_hold_back(10_000, False, settings(tolerance=0.01))


def test_a_knee_without_class_scores_is_that_of_the_damage() -> None:
    share, warned = share_to_hold_back(10_000, False, settings())
    assert share == 0
    assert warned is not None
    assert re.search(r"no class scores.*curve of the damage decides.*read_outputs=", warned)


@pytest.mark.parametrize(("samples", "measured"), [(99, True), (100, True), (98, False), (0, False)])
def test_a_knee_of_too_few_samples_is_that_of_the_damage(samples: int, measured: bool) -> None:
    share, warned = share_to_hold_back(samples, True, settings())
    if samples >= 100:
        assert (share, warned) == (0.5, None)
        return
    assert share == 0
    assert warned is not None
    assert f"on {samples // 2} samples, half of the {samples} validation samples" in warned
    assert "needs 50 or more" in warned
    assert "at least 100 samples" in warned


@pytest.mark.parametrize("tolerance", [0.01, 0.02, 0.1])
def test_what_a_tolerance_needs_is_said_and_is_enough(tolerance: float) -> None:
    for_it = settings(tolerance=tolerance)
    with pytest.raises(ValueError, match=f"selection.tolerance={tolerance} needs") as refusal:
        share_to_hold_back(60, True, for_it)
    said = str(refusal.value).replace(",", "")
    (at_least,) = map(int, re.findall(r"so (\d+) validation samples", said))
    assert "30 of 60 would be. Validate on more" in said
    assert share_to_hold_back(at_least, True, for_it) == (0.5, None)
    with pytest.raises(ValueError, match="Validate on more"):
        share_to_hold_back(at_least - 2, True, for_it)


def test_the_advice_to_measure_on_more_is_enough() -> None:
    """Whatever the rounding of the share makes of it."""
    for samples in range(792, 1300):
        with pytest.raises(ValueError, match=r"would be\. Raise measured_samples to 396, allow"):
            share_to_hold_back(samples, True, settings(395, tolerance=0.01))
        assert share_to_hold_back(samples, True, settings(396, tolerance=0.01)) == (396 / samples, None)


def test_fewer_measured_samples_than_an_accuracy_needs_are_said_to_be_the_cause() -> None:
    share, warned = share_to_hold_back(10_000, True, settings(20))
    assert share == 0
    assert warned is not None
    assert "on 20 samples, measured_samples: an accuracy needs 50 or more" in warned
    assert "raise it to 50 or more to have cuts measured" in warned
    assert share_to_hold_back(10_000, True, settings(50)) == (0.005, None)


def test_both_causes_are_named() -> None:
    with pytest.raises(ValueError, match="Raise measured_samples to 3996 and validate on more, allow"):
        share_to_hold_back(800, True, settings(tolerance=0.001))


@pytest.mark.parametrize("options", [{"flops": 0.5}, {"curve": "damage"}])
@pytest.mark.parametrize("scored", [True, False])
def test_where_the_volume_is_set_anyway_nothing_else_is_said_to_decide(
    options: dict[str, object], scored: bool
) -> None:
    share, warned = share_to_hold_back(60, scored, settings(**options), anyway=True)
    assert share == 0
    assert warned is not None
    assert "The volume is decided as without them" in warned
    assert "set selection.curve" not in warned


# -- what was collected -------------------------------------------------------------
def samples(count: int) -> tuple[tuple[torch.Tensor], torch.Tensor]:
    return (torch.zeros(count, 2),), torch.zeros(count)


@pytest.mark.parametrize("held", [None, 1, 49])
def test_too_few_of_one_size_are_told_and_with_a_tolerance_refused(held: int | None) -> None:
    found = None if held is None else samples(held)
    measured, warned = enough_to_measure(found, settings())
    assert measured is None
    assert warned is not None
    assert f"{held or 0} samples of one size are held back, and 50 are needed" in warned
    assert "curve of the damage decides instead; bring the inputs to one size" in warned
    with pytest.raises(ValueError, match=r"tolerance=0\.05 cannot be measured: .* 76 are needed"):
        enough_to_measure(found, settings(tolerance=0.05))


def test_enough_of_one_size() -> None:
    found = samples(76)
    assert enough_to_measure(found, settings(tolerance=0.05)) == (found, None)
