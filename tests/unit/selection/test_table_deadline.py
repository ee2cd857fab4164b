"""Targets in time by a table: met where it was written, refused where it says too little."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import clockwork
from helpers.captured import IMAGES, captured
from torch import nn

from acsp_lightning import LatencyAt, PruningSettings, apply_plan
from acsp_lightning.measure.time_table import Profile, StoredTimes
from acsp_lightning.selection.damage import DamageCurve
from acsp_lightning.selection.table_deadline import TableDeadline, read_table, table_clock
from acsp_lightning.selection.time_target import profile, timed_candidates
from acsp_lightning.structure.plan import build_plan

FILE = Path("times.json")


def network(width: int = 40) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 48, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(192, 3),
    ).eval()  # fmt: skip


class Case:
    """A network, and a table that was written where another clock goes."""

    def __init__(self, **options: int) -> None:
        self.model = network()
        self.groups = tuple(captured(self.model)[0].values())
        self.candidates = timed_candidates(self.groups, PruningSettings(**options))  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            clockwork.set_clock(patch)
            self.stored = profile(self.model, self.groups, (IMAGES[:1],), PruningSettings())

    def deadline(self, asked: float, stored: Profile | None = None) -> TableDeadline:
        stored = stored or self.stored
        clock = table_clock(self.model, self.groups, (IMAGES[:1],), LatencyAt(), stored, FILE)
        return TableDeadline(clock, self.candidates, asked, stored, FILE)

    def curves(self) -> dict[str, DamageCurve]:
        found = {}
        for group in self.groups:
            ks = [*self.candidates[group.name], group.width]
            damage = (1 - np.array(ks) / group.width) ** 2
            found[group.name] = DamageCurve(tuple(ks), tuple(map(float, damage)))
        return found

    def share(self, widths: Mapping[str, int]) -> float:
        """On the clock of the table."""
        cut = network()
        apply_plan(cut, build_plan(self.groups, {name: range(k) for name, k in widths.items()}))
        image = (IMAGES[:1],)
        return clockwork.network_seconds(cut, image) / clockwork.network_seconds(self.model, image)


@pytest.mark.parametrize("asked", [0.8, 0.5, 0.3])
def test_targets_are_met_where_the_table_was_written(asked: float) -> None:
    case = Case()
    deadline = case.deadline(asked)
    deadline.check()
    widths = deadline.widths(deadline.path(case.curves()))
    assert case.share(widths) == pytest.approx(asked, rel=0.08)
    times = deadline.times(widths)
    assert (times.after, times.checks, times.table) == (None, (), "times.json")
    assert times.share == times.predicted == times.reached
    assert times.share == pytest.approx(case.share(widths), rel=0.08)
    uncut = clockwork.network_seconds(case.model, (IMAGES[:1],))
    assert times.before.median == pytest.approx(uncut)
    assert deadline.seconds(widths) == pytest.approx(times.share * uncut)
    truth = clockwork.by_layer(case.model, (IMAGES[:1],))
    assert set(times.layers) == {"0", "2", "5"}
    for name, layer in times.layers.items():
        assert layer.before == pytest.approx(truth[name])
        assert layer.after is None


def test_times_of_widths_that_were_given() -> None:
    case = Case()
    given = {group.name: group.width // 2 for group in case.groups}
    assert case.deadline(0.5).times(given).share == pytest.approx(case.share(given), rel=0.1)


def test_all_of_the_time_is_no_target() -> None:
    case = Case()
    deadline = case.deadline(1.0)
    deadline.check()
    widths = deadline.widths(deadline.path(case.curves()))
    assert widths == {group.name: group.width for group in case.groups}


def test_what_the_smallest_network_cannot_reach_is_refused_with_the_figures() -> None:
    case = Case()
    least = case.share({name: ks[0] for name, ks in case.candidates.items()})
    deadline = case.deadline(0.9 * least)
    message = rf"asks for .* ms a pass \(batch 1, times\.json\).*latency={least:.3f}, of .* ms uncut"
    with pytest.raises(ValueError, match=message):
        deadline.check()
    with pytest.raises(ValueError, match="asks for"):
        deadline.widths(deadline.path(case.curves()))


def test_a_table_without_a_layer_is_refused() -> None:
    case = Case()
    gone = next(key for key in case.stored.layers if key.startswith("Conv2d"))
    layers = {key: seconds for key, seconds in case.stored.layers.items() if key != gone}
    with pytest.raises(
        ValueError, match=r"latency_table=times.json has no time of Conv2d\(.*\. Write it"
    ):
        case.deadline(0.5, replace(case.stored, layers=layers)).check()
    # Rounded in another way, there are other widths.
    with pytest.raises(ValueError, match=r"has no time of .*round_to"):
        Case(round_to=3).deadline(0.5).check()


def test_a_table_of_a_deeper_network_is_refused() -> None:
    case = Case()
    first, *others = case.stored.networks
    deeper = replace(case.stored, networks=(replace(first, total=2 * first.total), *others))
    with pytest.raises(ValueError, match=r"is of another network: its layers take .* of this one"):
        case.deadline(0.5, deeper).check()


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    path, stored = tmp_path / "times.json", Case().stored
    with pytest.raises(ValueError, match=r"latency_table=.* cannot be read: .*No such file"):
        read_table(path, LatencyAt())
    path.write_text("{")
    with pytest.raises(ValueError, match=r"cannot be read: .*acsp-lightning profile"):
        read_table(path, LatencyAt())
    StoredTimes(stored.conditions, stored.layers).write(path)
    with pytest.raises(
        ValueError, match=r"cannot be read: .*'networks'.* wrote it\. Write it anew with"
    ):
        read_table(path, LatencyAt())
    stored.write(path)
    assert read_table(path, LatencyAt()) == stored
    with pytest.raises(ValueError, match="timed at batch 1, and latency_at is batch 1, compiled"):
        read_table(path, LatencyAt(compiled=True))
