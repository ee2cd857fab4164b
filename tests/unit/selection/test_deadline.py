"""Targets in time against trying all widths, on networks whose true time is a formula."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from helpers import clockwork
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import apply_plan
from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.latency import LatencyComparison
from acsp_lightning.measure.time_table import TimeTable
from acsp_lightning.selection.axis import timed_widths
from acsp_lightning.selection.clock import PATIENCE, SURE, Clock, compare
from acsp_lightning.selection.damage import DamageCurve, total_damage
from acsp_lightning.selection.deadline import CLOSE, MOST_CHECKS, Deadline
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups

IMAGE = torch.rand(1, 3, 6, 6)


class Net(nn.Module):
    """Three groups; what lies between its layers takes time as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 48, 3, padding=1)
        self.c = nn.Conv2d(48, 32, 1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.b(functional.relu(self.a(x))))
        out: Tensor = self.head(self.pool(functional.relu(self.c(x))).mean((2, 3)))
        return out


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.set_clock(monkeypatch)


class Case:
    """A network, its groups and made-up curves of damage."""

    def __init__(self, seed: int = 0) -> None:
        self.model = Net().eval()
        self.groups: tuple[ChannelGroup, ...] = trace_groups(self.model, (IMAGE,)).groups
        random = np.random.default_rng(seed)
        self.curves: dict[str, DamageCurve] = {}
        for group in self.groups:
            ks = [*timed_widths(group, 2, 1), group.width]
            damage = random.uniform(0.5, 2) * (1 - np.array(ks) / group.width) ** random.uniform(1.5, 3)
            self.curves[group.name] = DamageCurve(tuple(ks), tuple(map(float, damage)))

    def deadline(self, asked: float, taken: float = 1.0, **options: Any) -> Deadline:
        clock = Clock(self.model, self.groups, (IMAGE,), LatencyAt(), TimeTable(), **options)
        candidates = {name: curve.ks[:-1] for name, curve in self.curves.items()}
        return Deadline(clock, candidates, asked, taken)

    def by_layer(self, widths: Mapping[str, int]) -> dict[str, float]:
        cut = copy.deepcopy(self.model)
        apply_plan(cut, build_plan(self.groups, {name: range(k) for name, k in widths.items()}))
        return clockwork.by_layer(cut, (IMAGE,))

    def seconds(self, widths: Mapping[str, int]) -> float:
        return sum(self.by_layer(widths).values())

    def everything(self) -> Iterator[tuple[float, float]]:
        """Share of the time and damage of all combinations of full blocks, or the fewest."""
        whole = self.seconds({})
        choices = [[k for k in curve.ks if k % 8 == 0 or k == 2] for curve in self.curves.values()]
        for ks in itertools.product(*choices):
            widths = dict(zip(self.curves, ks, strict=True))
            yield self.seconds(widths) / whole, total_damage(self.curves, widths)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_targets_are_met_with_little_damage(seed: int) -> None:
    case = Case(seed)
    every = list(case.everything())
    for target in (0.8, 0.6, 0.4, 0.25):
        deadline = case.deadline(target)
        widths = deadline.widths(deadline.path(case.curves))
        share = case.seconds(widths) / case.seconds({})
        assert share <= (1 + CLOSE) * target
        best = min(damage for time, damage in every if time <= target)
        found = total_damage(case.curves, widths)
        largest = max(damage for _, damage in every)
        assert found <= best + 0.05 * largest
        times = deadline.times(widths)
        assert times.share == pytest.approx(share)
        assert times.reached == pytest.approx(share)
        assert times.predicted == pytest.approx(share, rel=0.1)
        assert 1 <= len(times.checks) <= MOST_CHECKS
        assert times.smallest == pytest.approx(min(time for time, _ in every), rel=0.01)


def test_widths_are_rounded_as_the_clock_rounds() -> None:
    case = Case()
    deadline = case.deadline(0.5)
    path = deadline.path(case.curves)
    for name, every in case.curves.items():
        layers = {k: case.by_layer({name: k}) for k in every.ks}
        # The pooling has no weights, and belongs to what lies between the layers.
        times = {k: sum(found.values()) - found["pool"] for k, found in layers.items()}
        kept = path.curves[name].ks
        assert 2 < len(kept) < len(every.ks)
        for k in every.ks[:-1]:
            faster = all(times[k] < (1 - 1e-9) * times[wider] for wider in every.ks if wider > k)
            assert faster == (k in kept), (name, k)


def test_what_lies_between_the_layers_is_learned_from_checks() -> None:
    """A network whose time is no linear function of the sum of its layers."""

    def crooked(network: Any, arguments: tuple[Any, ...]) -> float:
        seconds = clockwork.network_seconds(network, arguments)
        return seconds if not list(network.children()) else 1e-3 * (seconds / 1e-3) ** 0.5

    with pytest.MonkeyPatch.context() as patch:
        clockwork.set_clock(patch, crooked)
        case = Case()
        deadline = case.deadline(0.6)
        widths = deadline.widths(deadline.path(case.curves))
        times = deadline.times(widths)
        assert len(times.checks) > 1, "the first guess is not near"
        errors = [abs(check.measured - 0.6) for check in times.checks]
        assert errors[-1] < errors[0] / 3
        assert times.share == pytest.approx(0.6, rel=0.05)


def test_a_target_counts_from_the_first_network() -> None:
    case = Case()
    deadline = case.deadline(0.4, taken=0.8)
    times = deadline.times(deadline.widths(deadline.path(case.curves)))
    assert times.share == pytest.approx(0.5, rel=0.05)
    assert times.reached == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize(("asked", "taken"), [(1.0, 1.0), (0.5, 0.4), (0.5, 0.505)])
def test_nothing_is_cut_where_the_target_is_met_already(asked: float, taken: float) -> None:
    case = Case()
    deadline = case.deadline(asked, taken)
    widths = deadline.widths(deadline.path(case.curves))
    assert widths == {group.name: group.width for group in case.groups}
    assert deadline.seconds(widths) is None
    times = deadline.times(widths)
    assert times.checks == ()
    assert times.share == 1


def test_what_an_earlier_cut_left_of_the_target_is_not_asked_for_again() -> None:
    """It is within what counts as met, and less than what a busy machine can tell."""
    case, noisy = Case(), Noisy(0.4 * SURE, 1.0)
    deadline = case.deadline(0.5, (1 + CLOSE) * 0.5, compare=noisy)
    deadline.check()
    widths = deadline.widths(deadline.path(case.curves))
    assert widths == {group.name: group.width for group in case.groups}
    assert deadline.times(widths).reached == (1 + CLOSE) * 0.5
    with pytest.raises(ValueError, match="is to save"):  # the same share of a first network
        case.deadline(1 / (1 + CLOSE), compare=Noisy(2 * SURE, CLOSE)).check()


def test_what_the_smallest_network_cannot_reach_is_refused_with_the_figures() -> None:
    case = Case()
    whole = case.seconds({})
    # On the path are no widths of incomplete blocks.
    on_path = case.deadline(0.5).path(case.curves).stages[-1].widths
    of_all = {name: curve.ks[0] for name, curve in case.curves.items()}
    for smallest in (on_path, of_all):
        least = case.seconds(smallest)
        deadline = case.deadline(0.9 * least / whole)
        message = (
            rf"asks for {900 * least:.3g} ms a pass .*takes {1000 * least:.3g} ms if .*"
            rf"latency={least / whole:.3f}, of {1000 * whole:.3g} ms uncut\. Raise latency"
        )
        with pytest.raises(ValueError, match=message):
            deadline.check() if smallest is of_all else deadline.widths(deadline.path(case.curves))
        case.deadline(least / whole).check()
        case.deadline(0.9 * least / whole, taken=0.9).check()


class Noisy:
    """A comparison whose ratio has some error, by how long it takes."""

    def __init__(self, error: float, patient: float) -> None:
        self.errors = {0.0: error, PATIENCE: patient}
        self.asked: list[float] = []

    def __call__(self, *arguments: Any) -> LatencyComparison:
        *others, seconds = arguments
        self.asked.append(seconds)
        found = compare(*others, 0.0)
        return clockwork.compared(found.before.median, found.after.median, self.errors[seconds])


@pytest.mark.parametrize(
    ("asked", "error", "patient", "refused", "longer"),
    [
        (0.9, 0.4 * SURE, 1.0, False, False),
        # Two standard errors of a share of 0.9.
        (0.9, 0.6 * SURE, 0.05, False, True),
        (0.9, 0.6 * SURE, 0.06, True, True),
        (0.5, 0.6 * SURE, 0.3, False, True),
    ],
)
def test_noise_larger_than_the_gain_is_refused_after_a_longer_look(
    asked: float, error: float, patient: float, refused: bool, longer: bool
) -> None:
    case, noisy = Case(), Noisy(error, patient)
    deadline = case.deadline(asked, compare=noisy)
    path = deadline.path(case.curves)
    if refused:
        for look in (deadline.check, lambda: deadline.widths(path)):
            with pytest.raises(ValueError, match=r"is to save .* known to ± .* alone: .* quartiles of"):
                look()
    else:
        deadline.widths(path)
    turns = [0.0, PATIENCE] if longer else [0.0]
    assert noisy.asked == turns * (len(noisy.asked) // len(turns))


def test_times_of_widths_that_were_given() -> None:
    case = Case()
    given = {group.name: group.width // 2 for group in case.groups}
    times = case.deadline(0.5).times(given)
    assert times.share == pytest.approx(case.seconds(given) / case.seconds({}))
    assert (times.predicted, times.smallest, times.checks) == (None, None, ())
    assert set(times.layers) == {"a", "b", "c", "head"}
    for layer in times.layers.values():
        assert layer.predicted is None
        assert layer.after < layer.before


def test_predictions_for_other_depths() -> None:
    case = Case()
    deadline = case.deadline(0.5)
    path = deadline.path(case.curves)
    deadline.widths(path)
    for stage in (path.stages[0], path.stages[len(path.stages) // 2], path.stages[-1]):
        found = deadline.seconds(stage.widths)
        assert found == pytest.approx(case.seconds(stage.widths), rel=0.1)


def test_close_is_close_enough() -> None:
    case = Case()
    deadline = case.deadline(0.5)
    times = deadline.times(deadline.widths(deadline.path(case.curves)))
    near = [abs(check.measured / 0.5 - 1) <= CLOSE for check in times.checks]
    assert not any(near[:-1])
