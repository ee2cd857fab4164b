"""Paths and widths against trying everything."""

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from acsp_lightning.selection.cost import FlopsModel
from acsp_lightning.selection.damage import DamageCurve, total_damage
from acsp_lightning.selection.path import (
    DamagePath,
    NetworkCurve,
    Stage,
    cheaper_widths,
    greedy_path,
    widths_within,
)
from acsp_lightning.structure.groups import ChannelGroup, LayerSide


def made_up_groups(widths: list[int]) -> tuple[ChannelGroup, ...]:
    """A chain of layers "0", "1", ...: group i leaves layer i and enters the next."""
    groups = []
    for place, width in enumerate(widths):
        every = tuple(range(width))
        out = LayerSide(str(place), "out", width, every, every)
        read = LayerSide(str(place + 1), "in", width, every, every)
        groups.append(ChannelGroup(f"g{place}", width, (out,), (), (read,), False))
    return tuple(groups)


def problem(seed: int, groups: int = 4, points: int = 8) -> tuple[dict[str, DamageCurve], FlopsModel]:
    """Convex curves with noise on them, over a chain of layers of random cost."""
    random = np.random.default_rng(seed)
    widths = [int(w) for w in random.integers(12, 40, groups)]
    made = made_up_groups(widths)
    flops = {str(place): int(random.integers(10**4, 10**6)) for place in range(groups + 1)}
    curves = {}
    for group in made:
        below = random.choice(np.arange(2, group.width), points - 1, replace=False)
        ks = [*sorted(map(int, below)), group.width]
        removed = 1 - np.array(ks) / group.width
        damage = random.uniform(0.1, 3) * removed ** random.uniform(1, 4)
        damage *= random.uniform(0.8, 1.2, points)
        damage = np.minimum.accumulate(damage)
        curves[group.name] = DamageCurve(tuple(ks), tuple(map(float, damage)))
    return curves, FlopsModel(made, flops)


def everything(curves: Mapping[str, DamageCurve], costs: FlopsModel) -> Iterator[tuple[float, float]]:
    """FLOPs and damage of every combination of widths."""
    for ks in itertools.product(*(curve.ks for curve in curves.values())):
        widths = dict(zip(curves, ks, strict=True))
        yield costs.total(widths), total_damage(curves, widths)


@pytest.mark.parametrize("seed", range(10))
def test_the_path_falls_to_the_smallest_widths(seed: int) -> None:
    curves, costs = problem(seed)
    stages = greedy_path(curves, costs)
    assert stages[0].widths == {name: curve.ks[-1] for name, curve in curves.items()}
    assert stages[-1].widths == {name: curve.ks[0] for name, curve in curves.items()}
    assert stages[0].damage == 0
    for before, after in itertools.pairwise(stages):
        changed = [name for name in curves if before.widths[name] != after.widths[name]]
        assert len(changed) == 1
        assert before.widths[changed[0]] > after.widths[changed[0]]
        assert before.cost > after.cost
        assert before.damage <= after.damage
    for stage in stages:
        assert stage.cost == pytest.approx(costs.total(stage.widths))
        assert stage.damage == pytest.approx(total_damage(curves, stage.widths))


def test_every_step_of_the_path_is_the_cheapest_there_is() -> None:
    curves, costs = problem(3)
    for before, after in itertools.pairwise(greedy_path(curves, costs)):
        rate = (after.damage - before.damage) / (before.cost - after.cost)
        for name, curve in curves.items():
            for k, damage in zip(curve.ks, curve.damage, strict=True):
                if k < before.widths[name]:
                    lost = damage - curve.damage[curve.ks.index(before.widths[name])]
                    assert lost / costs.saved(before.widths, name, k) >= rate - 1e-15


def test_what_costs_nothing_goes_first() -> None:
    curves = {
        "g0": DamageCurve((2, 6, 10), (1.0, 0.0, 0.0)),
        "g1": DamageCurve((2, 6, 10), (1.0, 0.5, 0.0)),
    }
    costs = FlopsModel(made_up_groups([10, 10]), {"0": 100, "1": 100, "2": 10**6})
    stages = greedy_path(curves, costs)
    assert stages[1].widths == {"g0": 6, "g1": 10}
    assert stages[1].damage == 0


def test_nothing_to_cut() -> None:
    costs = FlopsModel((), {"a": 10})
    (stage,) = greedy_path({}, costs)
    assert stage == Stage({}, 10.0, 0.0)
    assert NetworkCurve.of([stage]) == NetworkCurve((10.0,), (0.0,), None)
    assert widths_within([stage], {}, costs, 10) == {}
    assert widths_within([stage], {}, costs, 9) is None


SHARES = (0.15, 0.3, 0.5, 0.7, 0.9)


@pytest.mark.parametrize("seed", range(12))
def test_widths_within_a_budget_are_close_to_the_best_of_all(seed: int) -> None:
    """Greedy along the hulls: a step may be too large for what is left, hence the margin."""
    curves, costs = problem(seed)
    combinations = np.array(list(everything(curves, costs)))
    stages, largest = greedy_path(curves, costs), combinations[:, 1].max()
    for share in SHARES:
        budget = share * costs.total({})
        allowed = combinations[combinations[:, 0] <= budget, 1]
        found = widths_within(stages, curves, costs, budget)
        assert (found is None) == (len(allowed) == 0)
        if found is not None:
            assert all(k in curves[name].ks for name, k in found.items())
            assert costs.total(found) <= budget
            assert allowed.min() - 1e-12 <= total_damage(curves, found)
            assert total_damage(curves, found) <= 1.1 * allowed.min() + 0.02 * largest


@pytest.mark.parametrize("seed", range(12))
def test_nothing_that_fits_is_left_out(seed: int) -> None:
    curves, costs = problem(seed)
    budget = 0.6 * costs.total({})
    found = widths_within(greedy_path(curves, costs), curves, costs, budget)
    assert found is not None
    for name, curve in curves.items():
        for k, damage in zip(curve.ks, curve.damage, strict=True):
            if damage < curve.damage[curve.ks.index(found[name])]:
                assert costs.total({**found, name: k}) > budget


def test_budgets_at_and_beyond_the_ends() -> None:
    curves, costs = problem(0)
    stages = greedy_path(curves, costs)
    most, least = stages[0].cost, stages[-1].cost
    assert widths_within(stages, curves, costs, most) == stages[0].widths
    assert widths_within(stages, curves, costs, math.inf) == stages[0].widths
    assert widths_within(stages, curves, costs, least) == stages[-1].widths
    assert widths_within(stages, curves, costs, math.nextafter(least, 0)) is None


def test_more_flops_never_do_more_damage_along_the_path() -> None:
    curves, costs = problem(1)
    stages = greedy_path(curves, costs)
    for stage in stages:
        found = widths_within(stages, curves, costs, stage.cost)
        assert found is not None
        assert total_damage(curves, found) <= stage.damage + 1e-12


# -- the knee ----------------------------------------------------------------------------------------
def stages_of(flops: list[float], damage: list[float]) -> list[Stage]:
    return [Stage({}, f, d) for f, d in zip(flops, damage, strict=True)]


@pytest.mark.parametrize("unit", [1.0, 1e9, 0.3])
@pytest.mark.parametrize("corner", [5, 10, 15])
def test_the_knee_is_the_corner(corner: int, unit: float) -> None:
    """Nothing is lost down to the corner, and from there everything in equal steps of the root."""
    flops = [unit * f for f in range(20, -1, -1)]
    damage = [max(0.0, place - (20 - corner)) ** 2 for place in range(21)]
    curve = NetworkCurve.of(stages_of(flops, damage))
    assert curve.knee is not None
    assert curve.flops[curve.knee] == unit * corner
    assert curve.damage[curve.knee] == 0
    assert curve.flops == tuple(flops)
    assert curve.damage == tuple(damage)


@pytest.mark.parametrize(
    "damage",
    [[0.0] * 21, [float(place) ** 2 for place in range(21)], [0.0] + [1.0] * 20],
    ids=["none", "even", "at once"],
)
def test_no_knee(damage: list[float]) -> None:
    assert NetworkCurve.of(stages_of([float(f) for f in range(20, -1, -1)], damage)).knee is None


def test_too_few_stages_have_no_knee() -> None:
    assert NetworkCurve.of(stages_of([3.0, 2.0, 1.0], [0.0, 0.0, 1.0])).knee is None


def test_stages_that_save_nothing_are_no_points_of_the_curve() -> None:
    """Of two stages of equal FLOPs the one of less damage counts."""
    flops = [float(f) for f in range(20, 9, -1)] + [10.0] + [float(f) for f in range(9, -1, -1)]
    damage = [0.0] * 11 + [0.5] + [float(step + 1) ** 2 for step in range(10)]
    curve = NetworkCurve.of(stages_of(flops, damage))
    assert curve.knee == 10


def test_channels_to_spare_all_go_and_hardly_more() -> None:
    """Three groups of which two thirds, a half and nothing are copies."""
    ks = tuple(range(2, 31))
    spare = {"g0": 10, "g1": 15, "g2": 30}
    curves = {
        name: DamageCurve(ks, tuple(max(0.0, 1 - k / true) ** 2 for k in ks))
        for name, true in spare.items()
    }
    costs = FlopsModel(made_up_groups([30] * 3), {str(place): 30**2 * 100 for place in range(4)})
    stages = greedy_path(curves, costs)
    curve = NetworkCurve.of(stages)
    assert curve.knee is not None
    widths = stages[curve.knee].widths
    assert widths["g0"] == 10
    assert widths["g1"] == 15
    assert widths["g2"] >= 28


# -- costs that are staircases -----------------------------------------------------------------
class Blocks:
    """A cost that hardware has: it works through blocks of eight channels."""

    def total(self, widths: Mapping[str, int]) -> float:
        return sum(math.ceil(widths.get(name, 20) / 8) for name in ("a", "b"))

    def saved(self, widths: Mapping[str, int], group: str, k: int) -> float:
        return self.total(widths) - self.total({**widths, group: k})


def test_widths_that_cost_as_much_as_a_larger_one_are_left_out() -> None:
    every = DamageCurve(tuple(range(2, 21)), tuple(float(20 - k) for k in range(2, 21)))
    found = cheaper_widths({"a": every, "b": DamageCurve((20,), (0.0,))}, Blocks())
    assert found["a"] == DamageCurve((8, 16, 20), (12.0, 4.0, 0.0))
    assert found["b"].ks == (20,)


def test_a_path_visits_blocks_and_counts_in_another_cost() -> None:
    curve = DamageCurve(tuple(range(2, 21)), tuple(float((20 - k) ** 2) for k in range(2, 21)))
    path = DamagePath.of(cheaper_widths({"a": curve, "b": curve}, Blocks()), Blocks())
    assert (path.full, path.least) == (6, 2)
    assert [sorted(stage.widths.values()) for stage in path.stages] == [
        [20, 20],
        [16, 20],
        [16, 16],
        [8, 16],
        [8, 8],
    ]
    costs = FlopsModel(made_up_groups([20, 20]), {"0": 100, "1": 100, "2": 100})

    class Renamed:
        def total(self, widths: Mapping[str, int]) -> float:
            return costs.total({"g0": widths["a"], "g1": widths["b"]})

        def saved(self, widths: Mapping[str, int], group: str, k: int) -> float:
            raise AssertionError("stages are not chosen again")

    counted = path.counted_in(Renamed())
    assert [stage.widths for stage in counted.stages] == [stage.widths for stage in path.stages]
    assert counted.full == 300
    assert counted.least == pytest.approx(100 * (0.4 + 0.16 + 0.4))
