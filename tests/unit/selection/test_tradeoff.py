"""Knees and tolerances of measured curves whose answers are known."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

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
@pytest.mark.parametrize("seed", range(12))
def test_noise_of_the_standard_error_moves_it_by_a_step_at_most(corner: float, seed: int) -> None:
    depths = measured(TEN, after(corner, height=0.8), after(corner, 2), 0.005, noise=0.005, seed=seed)
    knee = knee_of(depths)
    assert knee is not None
    assert abs(depths[knee].flops - 100 * corner) <= 10


def test_scores_fall_apart_before_the_accuracy_does() -> None:
    """Nothing of the accuracy is lost at the knee of the scores: it decides."""
    depths = measured(TEN, after(0.3, height=0.8), after(0.6, 2))
    knee = knee_of(depths)
    assert knee is not None
    assert depths[knee].flops == 60


@pytest.mark.parametrize("power", [1, 2, 4])
def test_where_accuracy_is_lost_before_the_scores_fall_apart_little_of_it_goes(power: int) -> None:
    """The scores bend at 20 % of the FLOPs, where far more than 1.5 points are gone."""

    def drop(share: float) -> float:
        return 0.4 * (1 - share) ** power

    depths = measured(range(100, 0, -5), drop, after(0.2, 2))
    knee = knee_of(depths)
    assert knee is not None
    assert depths[knee].flops == min(f for f in range(100, 0, -5) if drop(f / 100) <= 0.015)


def test_where_scores_and_accuracy_bend_the_smaller_cut_counts() -> None:
    """Kneedle on each alone: the accuracy bends at 70 %, within what it may lose, the scores at 40."""
    depths = measured(range(100, 0, -5), after(0.7, height=0.9), after(0.4, 2))
    knee = knee_of(depths)
    assert knee is not None
    assert depths[knee].flops == 70


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


@pytest.mark.parametrize("error", [nothing, lambda share: (1 - share) ** 2, after(0.4, 2)])
@pytest.mark.parametrize("flops", [TEN, TEN[:3], TEN[:1]])
def test_where_no_accuracy_is_lost_at_any_depth_there_is_no_knee(
    error: Callable[[float], float], flops: Sequence[int]
) -> None:
    depths = measured(flops, nothing, error)
    assert knee_of(depths) is None
    assert next_for_knee(depths) == []


@pytest.mark.parametrize(("lost", "has_knee"), [(0.009, False), (0.011, True)])
def test_a_loss_within_two_standard_errors_is_none(lost: float, has_knee: bool) -> None:
    depths = measured(TEN, after(0.2, 1, 2 * lost), after(0.5, 2), standard_error=0.005)
    assert depths[-1].fidelity.drop.mean == pytest.approx(lost)
    assert (knee_of(depths) is not None) is has_knee


@pytest.mark.parametrize("drop", [lambda share: 0.9 * (1 - share), lambda share: 0.9 * (share < 1)])
def test_where_every_cut_costs_more_the_knee_is_the_uncut_network(
    drop: Callable[[float], float],
) -> None:
    depths = measured(TEN, drop, lambda share: (1 - share) ** 2)
    assert knee_of(depths) == 0
    assert next_for_knee(depths)[-1] == 95


# -- the tolerance ------------------------------------------------------------------
def rising(means: Sequence[float]) -> list[float]:
    """Isotonic regression, written out: each value is the max-min of means over intervals."""
    return [
        max(
            min(float(np.mean(means[i : j + 1])) for j in range(here, len(means)))
            for i in range(here + 1)
        )
        for here in range(len(means))
    ]


def convex(saved: np.ndarray, means: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Weighted least squares with the values as unknowns and their slopes as constraints."""

    def slopes(values: np.ndarray) -> np.ndarray:
        return np.diff(np.concatenate([[0], values])) / np.diff(saved)

    limits = [
        {"type": "ineq", "fun": lambda values: slopes(values)[:1]},
        {"type": "ineq", "fun": lambda values: np.diff(slopes(values))},
    ]
    scale = errors.min()
    found = minimize(
        lambda values: ((values - means[1:]) ** 2 * (scale / errors[1:]) ** 2).sum() * 1e4,
        np.zeros(len(means) - 1),
        constraints=limits,
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    return np.concatenate([[0], found.x])


@pytest.mark.parametrize("seed", range(8))
def test_drops_are_smoothed_as_two_regressions_written_out(seed: int) -> None:
    """Convex and rising down to half of the accuracy, rising from there on."""
    depths = measured(TEN, lambda share: 0.9 * (1 - share) ** 3, nothing, 0.01, noise=0.02, seed=seed)
    random = np.random.default_rng(seed)
    depths = [with_error(depth, float(random.uniform(0.002, 0.02))) for depth in depths]
    means = [depth.fidelity.drop.mean for depth in depths]
    monotone = rising(means)
    many = sum(drop <= 0.95 / 2 for drop in monotone)
    assert 6 <= many < 10
    saved = 1 - np.array(TEN) / 100
    errors = np.array([depth.fidelity.drop.error for depth in depths])
    expected = convex(saved[:many], np.array(means)[:many], errors[:many])
    found = smoothed_drops(depths)
    np.testing.assert_allclose(found[:many], expected, atol=1e-4)
    np.testing.assert_allclose(found[many:], np.maximum(monotone[many:], expected[-1]), atol=1e-4)


@pytest.mark.parametrize("tolerance", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("power", [1, 2, 3])
def test_a_loss_that_is_convex_is_left_as_it_is(power: int, tolerance: float) -> None:
    depths = measured(range(200, 0, -5), lambda share: 0.45 * (1 - share) ** power, nothing)
    drops = [depth.fidelity.drop.mean for depth in depths]
    np.testing.assert_allclose(smoothed_drops(depths), drops, atol=1e-9)
    within = [place for place, drop in enumerate(drops) if drop <= tolerance + 1e-12]
    assert deepest_within(depths, tolerance + 1e-9) == within[-1]


def test_smoothing_takes_most_of_the_noise_away() -> None:
    """So that a tolerance ends where the curve without noise is, and not at the luckiest depth."""
    flops = range(200, 0, -10)

    def drop(share: float) -> float:
        return 0.3 * (1 - share) ** 2

    off, raw = [], []
    for seed in range(40):
        depths = measured(flops, drop, nothing, 0.01, noise=0.01, seed=seed)
        truth = np.array([drop(f / 200) for f in flops])
        off.append(np.abs(np.array(smoothed_drops(depths)) - truth).mean())
        raw.append(np.mean([abs(d.fidelity.drop.mean - t) for d, t in zip(depths, truth, strict=True)]))
    assert np.mean(off) < 0.6 * np.mean(raw)


def with_error(depth: Depth, error: float) -> Depth:
    drop = replace(depth.fidelity.drop, error=error)
    return replace(depth, fidelity=replace(depth.fidelity, drop=drop))


def test_what_is_known_well_weighs_more() -> None:
    depths = measured(TEN[:5], lambda share: 0.5 * (1 - share), nothing, 0.001)
    off = [with_error(d, 0.5) if p == 2 else d for p, d in enumerate(depths)]
    off[2] = replace(off[2], fidelity=replace(off[2].fidelity, drop=Estimate(0.4, 0.5)))
    np.testing.assert_allclose(smoothed_drops(off), [0, 0.05, 0.1, 0.15, 0.2], atol=1e-3)


@pytest.mark.parametrize("tolerance", [0.0, -0.02, -1.0])
def test_none_tolerated_is_the_uncut_network(tolerance: float) -> None:
    """Below zero: what earlier cuts have lost is more than the tolerance."""
    depths = measured(TEN, lambda share: 0.1 * (1 - share), nothing)
    assert deepest_within(depths, tolerance) == 0
    assert deepest_within(depths[:1], tolerance) == 0


def test_a_lucky_deep_cut_is_not_taken() -> None:
    drops = iter([0.0, 0.01, 0.02, 0.2, 0.25, 0.005])
    depths = measured(TEN[:6], lambda share: next(drops), nothing)
    assert deepest_within(depths, 0.03) < 3


# -- what to measure next -----------------------------------------------------------
@pytest.mark.parametrize("tolerance", [0.02, 0.07, 0.3])
@pytest.mark.parametrize("power", [1, 2, 5])
def test_measuring_what_is_asked_for_next_leads_to_the_tolerance(tolerance: float, power: int) -> None:
    def depths_at(flops: Sequence[int]) -> list[Depth]:
        return measured(sorted(flops, reverse=True), lambda share: (1 - share) ** power, nothing)

    known = [*range(1000, 0, -125)]
    for _ in range(8):
        wanted = next_for_tolerance(depths_at(known), tolerance)
        if not wanted:
            break
        known.append(round(wanted[0]))
    depths = depths_at(known)
    here = deepest_within(depths, tolerance)
    every = depths_at(range(1000, 0, -1))
    truth = every[deepest_within(every, tolerance)]
    assert truth.flops - 1 <= depths[here].flops <= 1.03 * truth.flops


@pytest.mark.parametrize("corner", [0.25, 0.4, 0.55, 0.8])
@pytest.mark.parametrize("loses", [False, True])
def test_measuring_what_is_asked_for_next_leads_to_the_knee(corner: float, loses: bool) -> None:
    def lost(share: float) -> float:
        early = 0.3 * max(0.0, corner + 0.15 - share) ** 2 if loses else 0.0
        return after(corner, height=0.8)(share) + early

    def depths_at(flops: Sequence[int]) -> list[Depth]:
        return measured(sorted(flops, reverse=True), lost, after(corner, 2), standard_error=0.001)

    known = [*range(1000, 0, -125)]
    for _ in range(8):
        wanted = [round(flops) for flops in next_for_knee(depths_at(known))]
        wanted = [flops for flops in wanted if flops not in known]
        if not wanted:
            break
        known.append(wanted[0])
    found = knee_of(depths_at(known))
    assert found is not None
    every = depths_at(range(1000, 0, -1))
    truth = knee_of(every)
    assert truth is not None
    ratio = depths_at(known)[found].flops / every[truth].flops
    assert 1 / 1.15 < ratio < 1.15


def test_nothing_is_asked_for_where_the_tolerance_is_met_at_the_ends() -> None:
    depths = measured(TEN, nothing, nothing)
    assert next_for_tolerance(depths, 0.5) == []  # the deepest is tolerated
    # The uncut one alone.
    assert next_for_tolerance(depths[:1] + depths[3:], -1.0) == [85]


def test_no_depth_is_asked_for_beside_a_known_one() -> None:
    """The loss is reached within two percent of the FLOPs of either neighbour."""
    for flops in ([1000, 600, 590], [1000, 609, 600, 520, 500]):
        depths = measured(flops, lambda share: 1 - share, nothing)
        wanted = next_for_tolerance(depths, 0.399)
        known = [depth.flops for depth in depths]
        assert all(abs(one - other) > 0.01 * other for one in wanted for other in known)
