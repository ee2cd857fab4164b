"""Which depths are measured, on a network that is made up: against measuring all of them."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from acsp_lightning.measure.fidelity import Estimate, Fidelity
from acsp_lightning.selection import exploration
from acsp_lightning.selection.cost import FlopsModel
from acsp_lightning.selection.damage import DamageCurve
from acsp_lightning.selection.exploration import REFINED, SPREAD, Exploration, explore
from acsp_lightning.selection.path import DamagePath
from acsp_lightning.selection.tradeoff import RESOLUTION, Depth, TradeOff, deepest_within, knee_of
from acsp_lightning.structure.groups import ChannelGroup, LayerSide

ELSEWHERE = 1_000_000  # FLOPs that no cut changes
Loss = Callable[[float], float]


def path_of(widths: list[int], seed: int = 0, unit: int = 1000) -> DamagePath:
    """A chain of layers: group i leaves layer i and enters the next."""
    random = np.random.default_rng(seed)
    groups, curves = [], {}
    for place, width in enumerate(widths):
        every = tuple(range(width))
        out = LayerSide(str(place), "out", width, every, every)
        read = LayerSide(str(place + 1), "in", width, every, every)
        groups.append(ChannelGroup(f"g{place}", width, (out,), (), (read,), False))
        ks = tuple(sorted({*range(2, width, 1 + width // 24), width}))
        damage = random.uniform(0.1, 3) * (1 - np.array(ks) / width) ** random.uniform(1.5, 4)
        curves[f"g{place}"] = DamageCurve(ks, tuple(map(float, damage)))
    flops = {str(place): int(random.integers(100, 999)) * unit for place in range(len(widths) + 1)}
    return DamagePath.of(curves, FlopsModel(groups, flops))


class Fake:
    """Stands for trials: what is lost at a depth depends on its share of the FLOPs."""

    def __init__(self, path: DamagePath, drop: Loss, error: Loss, elsewhere: int = ELSEWHERE) -> None:
        self.path, self.drop, self.error, self.elsewhere = path, drop, error, elsewhere
        self.tried: list[Mapping[str, int]] = []

    def depth(self, widths: Mapping[str, int]) -> Depth:
        flops = round(self.elsewhere + self.path.costs.total(widths))
        share = flops / (self.elsewhere + self.path.full)
        lost = self.drop(share)
        found = Fidelity(
            1000,
            0.9 - lost,
            Estimate(lost, 0.001 * (lost > 0)),
            Estimate(1, 0),
            Estimate(self.error(share), 0),
        )
        return Depth(flops, flops, dict(widths), found)

    def __call__(self, widths: Mapping[str, int]) -> Depth:
        self.tried.append(dict(widths))
        return self.depth(widths)

    def explore(self, **options: object) -> TradeOff:
        return explore(self.path, self.depth(self.path.stages[0].widths), self, **options)  # type: ignore[arg-type]

    def everything(self) -> list[Depth]:
        """All that the path reaches, in 150 steps."""
        found: list[Depth] = []
        for budget in np.linspace(self.path.full, self.path.least, 150):
            widths = self.path.within(float(budget))
            if widths is not None and (not found or widths != found[-1].widths):
                found.append(self.depth(widths))
        return found


def after(corner: float, power: float = 1.0, height: float = 0.8) -> Loss:
    return lambda share: height * max(0.0, (corner - share) / corner) ** power


WIDTHS = [30, 24, 40, 16]


def check_bounded(found: TradeOff, fake: Fake, more: int = 0) -> None:
    assert len(fake.tried) <= SPREAD + REFINED + more
    assert len({tuple(sorted(widths.items())) for widths in fake.tried}) == len(fake.tried)
    assert fake.path.stages[0].widths not in fake.tried
    assert len(found.depths) == len(fake.tried) + 1
    flops = [depth.flops for depth in found.depths]
    assert flops == sorted(flops, reverse=True)


@pytest.mark.parametrize("corner", [0.35, 0.5, 0.65, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_the_knee_is_that_of_measuring_everything(corner: float, seed: int) -> None:
    fake = Fake(path_of(WIDTHS, seed), after(corner), after(corner, 2, 1.0))
    found = fake.explore()
    check_bounded(found, fake)
    every = fake.everything()
    truth = knee_of(every)
    assert found.knee is not None
    assert truth is not None
    ratio = found.depths[found.knee].flops / every[truth].flops
    assert 1 / RESOLUTION <= ratio <= RESOLUTION
    assert found.tolerated is None
    assert found.targets == {}
    assert found.requested is None


@pytest.mark.parametrize("tolerance", [0.01, 0.03, 0.1, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_the_tolerance_is_that_of_measuring_everything(tolerance: float, seed: int) -> None:
    fake = Fake(path_of(WIDTHS, seed), lambda share: 0.9 * (1 - share) ** 3, after(0.4, 2, 1.0))
    found = fake.explore(tolerance=tolerance)
    check_bounded(found, fake)
    every = fake.everything()
    truth = every[deepest_within(every, tolerance)]
    assert found.tolerated is not None
    chosen = found.depths[found.tolerated]
    assert chosen.fidelity.drop.mean <= tolerance + 1e-9
    assert truth.flops <= chosen.flops <= RESOLUTION * truth.flops
    assert found.tolerated == deepest_within(found.depths, tolerance)


def test_where_nothing_is_lost_no_depths_are_added() -> None:
    fake = Fake(path_of(WIDTHS), lambda share: 0.0, lambda share: 0.0)
    found = fake.explore(tolerance=0.1)
    check_bounded(found, fake)
    assert len(fake.tried) == SPREAD
    assert found.tolerated == SPREAD
    assert found.knee is None


def test_where_every_cut_loses_all_the_uncut_network_is_tolerated() -> None:
    fake = Fake(path_of(WIDTHS), lambda share: 0.5 * (share < 1), lambda share: 0.0)
    found = fake.explore(tolerance=0.1)
    check_bounded(found, fake)
    assert found.tolerated == 0


@pytest.mark.parametrize("seed", range(12))
def test_the_deepest_cut_is_among_them_whatever_the_rounding(seed: int) -> None:
    """FLOPs of the layers are shares of numbers, and those elsewhere are added and taken off."""
    random = np.random.default_rng(seed)
    path = path_of(random.integers(3, 40, 5).tolist(), seed, unit=int(random.integers(1, 10**6)))
    fake = Fake(path, after(0.5), after(0.5, 2), int(random.integers(0, 10**9)))
    found = fake.explore()
    assert found.depths[-1].widths == path.stages[-1].widths
    check_bounded(found, fake)
    whole, least = found.depths[0].flops, found.depths[-1].flops
    gaps = -np.diff([depth.flops for depth in found.depths])
    # Evenly spaced, but for widths that are whole numbers.
    assert gaps.max() <= (whole - least) / SPREAD + 0.35 * (whole - least)


def test_depths_are_spread_evenly_over_the_flops() -> None:
    fake = Fake(path_of([200, 200, 200, 200]), lambda share: 0.0, lambda share: 0.0)
    flops = [depth.flops for depth in fake.explore().depths]
    np.testing.assert_allclose(flops, np.linspace(flops[0], flops[-1], SPREAD + 1), rtol=0.03)


@pytest.mark.parametrize("widths", [[3], [2], [3, 3], []])
def test_networks_with_hardly_a_choice(widths: list[int]) -> None:
    fake = Fake(path_of(widths), after(0.9), after(0.9))
    for options in ({}, {"tolerance": 0.05}):
        fake.tried.clear()
        found = fake.explore(**options)
        check_bounded(found, fake)
        assert found.knee is None or found.depths[found.knee].fidelity.drop.mean <= 0.015
        assert (found.tolerated is None) is (not options)


def test_targets_are_measured_as_well_and_where_they_are() -> None:
    fake = Fake(path_of(WIDTHS), after(0.5), after(0.5, 2))
    whole = ELSEWHERE + fake.path.full
    found = fake.explore(shares=(0.9, 0.62, 0.5, 1.0), requested=0.5)
    check_bounded(found, fake, more=4)
    assert set(found.targets) == {"0.9", "0.62", "0.5", "1"}
    for share, place in found.targets.items():
        widths = fake.path.within(float(share) * whole - ELSEWHERE)
        assert found.depths[place].widths == widths
        assert found.depths[place].flops <= float(share) * whole
    assert found.targets["1"] == 0
    assert found.requested == "0.5"
    assert found.whole == whole


def test_shares_may_be_of_a_larger_network() -> None:
    """That before the first of several cuts."""
    fake = Fake(path_of(WIDTHS), after(0.5), after(0.5, 2))
    whole = 2 * (ELSEWHERE + fake.path.full)
    found = fake.explore(shares=(0.4,), whole=whole)
    assert found.whole == whole
    widths = fake.path.within(0.4 * whole - ELSEWHERE)
    assert found.depths[found.targets["0.4"]].widths == widths


def test_a_share_that_the_path_does_not_reach_is_refused_before_anything_is_tried() -> None:
    fake = Fake(path_of(WIDTHS), after(0.5), after(0.5, 2))
    least = (ELSEWHERE + fake.path.least) / (ELSEWHERE + fake.path.full)
    with pytest.raises(ValueError, match=rf"0\.01 of the FLOPs cannot be reached.*{least:.1%} are left"):
        fake.explore(shares=(0.5, 0.01))
    assert fake.tried == []


def test_where_the_best_depth_is_known_the_next_best_is_measured() -> None:
    """Few widths: the middle of the widest gap around the knee may be one that was measured."""
    fake = Fake(path_of([16, 16], unit=100_000), after(0.6), after(0.6, 2), elsewhere=0)
    explored = Exploration(fake.path, fake.depth(fake.path.stages[0].widths), fake)
    full = fake.path.full
    asked = [[full, 0.5 * full], [full, 0.5 * full, 0.7 * full], [full]]
    explored.refine(lambda depths: asked.pop(0), lambda: None)
    assert len(fake.tried) == 2
    assert asked == []


def test_a_depth_that_is_known_is_not_measured_again_as_a_target() -> None:
    fake = Fake(path_of(WIDTHS), lambda share: 0.0, lambda share: 0.0)
    least = (ELSEWHERE + fake.path.least) / (ELSEWHERE + fake.path.full)
    found = fake.explore(tolerance=0.1, shares=(least,))
    check_bounded(found, fake)
    assert [found.depths[place] for place in found.targets.values()] == [found.depths[-1]]


@pytest.mark.parametrize(("seconds", "told"), [(0.99, False), (1.01, True)])
def test_a_long_wait_is_told_before_most_of_it(
    monkeypatch: pytest.MonkeyPatch, seconds: float, told: bool
) -> None:
    """All depths together take thirty seconds, or a little less or more."""
    seconds *= 30 / (SPREAD + REFINED)
    now, messages = [0.0], []
    monkeypatch.setattr(exploration.time, "monotonic", lambda: now[0])
    fake = Fake(path_of(WIDTHS), lambda share: 0.0, lambda share: 0.0)

    def slow(widths: Mapping[str, int]) -> Depth:
        now[0] += seconds
        return fake(widths)

    def inform(message: str) -> None:
        messages.append((len(fake.tried), message))

    explore(fake.path, fake.depth(fake.path.stages[0].widths), slow, inform=inform)
    assert len(messages) == told
    for tried, message in messages:
        assert tried == 2
        assert f"up to {SPREAD + REFINED} depths will take 30 s or more" in message
        assert "selection.curve='damage'" in message


def test_the_widths_that_meet_a_time_are_measured_too() -> None:
    fake = Fake(path_of([24, 24]), after(0.6), after(0.6))
    widths = {"g0": 24, "g1": 2}
    found = fake.explore(in_time=widths)
    assert found.in_time is not None
    assert found.depths[found.in_time].widths == widths
    assert fake.tried.count(widths) == 1
    assert fake.explore().in_time is None
