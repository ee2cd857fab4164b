"""Knees and tolerances of measured curves whose answers are known."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from acsp_lightning.measure.fidelity import Estimate, Fidelity
from acsp_lightning.selection.tradeoff import (
    Depth,
    deepest_within,
    knee_of,
    next_for_knee,
    next_for_tolerance,
    smoothed_drops,
)

TEN = tuple(range(100, 0, -10))


def measured(
    flops: Sequence[int],
    drop: Callable[[float], float],
    error: Callable[[float], float],
    standard_error: float = 0.005,
    noise: float = 0.0,
    seed: int = 0,
) -> list[Depth]:
    """Depths of a network that loses ``drop`` and has a score error at a share of the FLOPs."""
    random = np.random.default_rng(seed)
    depths = []
    for place, count in enumerate(flops):
        lost = drop(count / flops[0]) + (float(random.normal(0, noise)) if noise and place else 0.0)
        fidelity = Fidelity(
            samples=1000,
            accuracy=0.95 - lost,
            drop=Estimate(lost, standard_error if place else 0.0),
            agreement=Estimate(1 - abs(lost), 0.0),
            score_error=Estimate(error(count / flops[0]), 0.0),
        )
        depths.append(Depth(count, count, {"g": count}, fidelity))
    return depths


def after(corner: float, power: float = 1.0, height: float = 1.0) -> Callable[[float], float]:
    """Nothing down to a share, and from there up to a height at no FLOPs."""
    return lambda share: height * max(0.0, (corner - share) / corner) ** power


def nothing(share: float) -> float:
    return 0.0


# -- the knee -----------------------------------------------------------------------
@pytest.mark.parametrize("corner", [0.2, 0.3, 0.5, 0.7])
def test_of_a_redundant_network_all_that_costs_nothing_goes(corner: float) -> None:
    depths = measured(TEN, after(corner, height=0.8), after(corner, 2))
    knee = knee_of(depths)
    assert knee is not None
    assert depths[knee].flops == round(100 * corner)


@pytest.mark.parametrize("corner", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_noise_well_below_the_standard_error_moves_it_by_a_step_at_most(
    corner: float, seed: int
) -> None:
    depths = measured(TEN, after(corner, height=0.8), after(corner, 2), 0.005, noise=0.0012, seed=seed)
    knee = knee_of(depths)
    assert knee is not None
    assert abs(depths[knee].flops - 100 * corner) <= 10


def test_scores_fall_apart_before_the_accuracy_does() -> None:
    """Nothing of the accuracy is lost at the knee of the scores: it decides."""
    depths = measured(TEN, after(0.3, height=0.8), after(0.6, 2))
    knee = knee_of(depths)
    assert knee is not None
    assert depths[knee].flops == 60


def test_where_accuracy_is_lost_before_the_scores_fall_apart_it_decides() -> None:
    """The scores bend at 30 % of the FLOPs, where 6 points are gone; these are lost from 70 % on."""
    depths = measured(
        range(100, 0, -5),
        lambda share: after(0.7, 2, 0.2)(share) + after(0.3, 1, 0.7)(share),
        after(0.3, 2),
    )
    at_scores = next(d for d in depths if d.flops == 30)
    assert at_scores.fidelity.drop.mean > 0.05
    knee = knee_of(depths)
    assert knee is not None
    assert 35 <= depths[knee].flops <= 70
    # By its own definition: farthest above the chord from there to the uncut network.
    drops = {d.flops: d.fidelity.drop.mean for d in depths if d.flops >= 30}
    above = {f: (f - 30) / 70 * drops[30] + (drops[30] - drop) - drops[30] * (f - 30) / 35
             for f, drop in drops.items()}  # fmt: skip
    assert depths[knee].flops == max(above, key=lambda f: (1 - drops[f] / drops[30]) - (f - 30) / 70)


def test_a_deeper_cut_that_is_better_by_chance_is_no_knee() -> None:
    """A bump of the scores: the curve is that of the worst so far."""
    smooth, bumpy = (measured(TEN, after(0.5, height=0.8), e) for e in (
        after(0.5, 2), lambda share: 0.0 if abs(share - 0.2) < 0.01 else after(0.5, 2)(share)
    ))  # fmt: skip
    assert knee_of(bumpy) == knee_of(smooth)


def test_scores_worse_than_none_are_no_worse_than_none() -> None:
    """Without a ceiling the deepest cut, off by a factor of 100, would be the only thing to be seen."""

    def wild(share: float) -> float:
        return 1e4 if share < 0.15 else after(0.5, 2)(share)

    depths = measured(TEN, after(0.5, height=0.8), wild)
    knee = knee_of(depths)
    assert knee is not None
    assert depths[knee].flops == 50


@pytest.mark.parametrize(
    ("drop", "error"),
    [
        (nothing, nothing),
        (lambda share: 0.9 * (1 - share), lambda share: (1 - share) ** 2),
        (lambda share: 0.0 if share == 1 else 0.9, lambda share: float(share < 1)),
        (lambda share: 0.9 * (1 - share) ** 0.5, lambda share: 1 - share),
    ],
    ids=["nothing is lost", "straight lines", "all at once", "convex"],
)
@pytest.mark.parametrize("flops", [TEN, tuple(range(64, 0, -4))])
def test_no_knee(
    drop: Callable[[float], float], error: Callable[[float], float], flops: Sequence[int]
) -> None:
    depths = measured(flops, drop, error)
    assert knee_of(depths) is None
    assert next_for_knee(depths) is None


def test_of_six_depths_none_is_a_knee() -> None:
    assert knee_of(measured(TEN[:6], after(0.7, height=0.8), after(0.7, 2))) is None


def test_losses_within_the_standard_error_are_none() -> None:
    """The scores fall apart at a half; the accuracy there is lower by half a standard error."""
    drop = after(0.5, height=0.8)
    for lost, standard_error, same in ((0.004, 0.008, True), (0.05, 0.008, False)):
        depths = measured(
            range(100, 0, -5),
            lambda share, lost=lost: drop(share) + lost * (1 - share) ** 3 / 0.125,  # type: ignore[misc]
            after(0.5, 2),
            standard_error,
        )
        knee = knee_of(depths)
        assert knee is not None
        assert (depths[knee].flops == 50) is same
        assert depths[knee].flops >= 50


# -- the tolerance ------------------------------------------------------------------
def brute_deepest(depths: Sequence[Depth], tolerance: float) -> int:
    """By pooling adjacent violators, written out: each drop is the max-min of means over intervals."""
    means = [d.fidelity.drop.mean for d in depths]
    smooth = [
        max(
            min(float(np.mean(means[i : j + 1])) for j in range(here, len(means)))
            for i in range(here + 1)
        )
        for here in range(len(means))
    ]
    np.testing.assert_allclose(smoothed_drops(depths), smooth, atol=1e-12)
    fits = [p for p, d in enumerate(depths) if smooth[p] + d.fidelity.drop.error <= tolerance]
    return max(fits, default=0)


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.03, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("seed", range(8))
def test_the_deepest_within_a_tolerance_of_noisy_depths(seed: int, tolerance: float) -> None:
    depths = measured(TEN, after(0.6, 2, 0.9), nothing, 0.005, noise=0.02, seed=seed)
    assert deepest_within(depths, tolerance) == brute_deepest(depths, tolerance)


def test_the_deepest_within_a_tolerance_has_the_error_on_top() -> None:
    depths = measured(TEN, lambda share: 0.1 * (1 - share), nothing, standard_error=0.005)
    assert depths[deepest_within(depths, 0.0349)].flops == 80  # 0.02 + 0.005, and 0.03 + 0.005 is over
    assert depths[deepest_within(depths, 0.0351)].flops == 70
    assert deepest_within(depths, 0.0149) == 0


@pytest.mark.parametrize("tolerance", [0.0, -0.02, -1.0])
def test_none_tolerated_is_the_uncut_network(tolerance: float) -> None:
    """Below zero: what earlier cuts have lost is more than the tolerance."""
    depths = measured(TEN, lambda share: 0.1 * (1 - share), nothing)
    assert deepest_within(depths, tolerance) == 0
    assert deepest_within(depths[:1], tolerance) == 0


def test_a_lucky_deep_cut_is_not_taken() -> None:
    drops = [0.0, 0.01, 0.02, 0.2, 0.25, 0.005]
    depths = [
        Depth(
            d.flops,
            d.parameters,
            d.widths,
            measured([100], lambda _, lost=lost: lost, nothing)[0].fidelity,
        )  # type: ignore[misc]
        for d, lost in zip(measured(TEN[:6], nothing, nothing), drops, strict=True)
    ]
    assert deepest_within(depths, 0.03) == 2


# -- what to measure next -----------------------------------------------------------
@pytest.mark.parametrize("tolerance", [0.02, 0.07, 0.3])
@pytest.mark.parametrize("power", [1, 2, 5])
def test_measuring_what_is_asked_for_next_leads_to_the_tolerance(tolerance: float, power: int) -> None:
    def depths_at(flops: Sequence[int]) -> list[Depth]:
        return measured(sorted(flops, reverse=True), lambda share: (1 - share) ** power, nothing)

    known = [*range(1000, 0, -125)]
    for _ in range(6):
        wanted = next_for_tolerance(depths_at(known), tolerance)
        if wanted is None:
            break
        known.append(round(wanted))
    depths = depths_at(known)
    here = deepest_within(depths, tolerance)
    every = depths_at(range(1000, 0, -1))
    truth = every[deepest_within(every, tolerance)]
    assert truth.flops <= depths[here].flops <= 1.1 * truth.flops


@pytest.mark.parametrize("corner", [0.25, 0.4, 0.55, 0.8])
@pytest.mark.parametrize("loses", [False, True])
def test_measuring_what_is_asked_for_next_leads_to_the_knee(corner: float, loses: bool) -> None:
    def lost(share: float) -> float:
        early = 0.3 * max(0.0, corner + 0.15 - share) ** 2 if loses else 0.0
        return after(corner, height=0.8)(share) + early

    def depths_at(flops: Sequence[int]) -> list[Depth]:
        return measured(sorted(flops, reverse=True), lost, after(corner, 2), standard_error=0.001)

    known = [*range(1000, 0, -125)]
    for _ in range(6):
        wanted = next_for_knee(depths_at(known))
        if wanted is None:
            break
        assert round(wanted) not in known
        known.append(round(wanted))
    found = knee_of(depths_at(known))
    assert found is not None
    every = depths_at(range(1000, 0, -1))
    truth = knee_of(every)
    assert truth is not None
    ratio = depths_at(known)[found].flops / every[truth].flops
    assert 1 / 1.15 < ratio < 1.15


def test_nothing_is_asked_for_where_the_tolerance_is_met_at_the_ends() -> None:
    depths = measured(TEN, nothing, nothing)
    assert next_for_tolerance(depths, 0.5) is None  # the deepest is tolerated
    assert math.isclose(
        next_for_tolerance(depths[:1] + depths[3:], -1.0) or 0, 85
    )  # the uncut one alone
