"""Where the times of a target come from: this machine, a file of it, or a table of another one."""

from pathlib import Path
from typing import Any

import pytest
from helpers import clockwork
from helpers.captured import IMAGES, captured
from helpers.fits import conv_net, same_state, snapshot

from acsp_lightning import LatencyAt, PruningSettings, SelectionConfig
from acsp_lightning.measure import latency
from acsp_lightning.measure.time_table import Profile, StoredTimes
from acsp_lightning.selection.axis import timed_widths
from acsp_lightning.selection.deadline import Deadline
from acsp_lightning.selection.table_deadline import TableDeadline
from acsp_lightning.selection.time_target import profile, time_target


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.set_clock(monkeypatch)


class Case:
    def __init__(self) -> None:
        self.model = conv_net()
        self.groups = tuple(captured(self.model)[0].values())

    def target(self, share: float | None = 0.7, **options: Any) -> Any:
        kept = options.pop("kept", None)
        settings = PruningSettings(selection=SelectionConfig(latency=share), **options)
        return time_target(self.model, self.groups, (IMAGES[:1],), settings, kept=kept)

    def profile(self, path: Path, **options: Any) -> Profile:
        stored = profile(self.model, self.groups, (IMAGES[:1],), PruningSettings(**options))
        stored.write(path)
        return stored


def test_without_a_target_there_is_none() -> None:
    with Case().target(None) as target:
        assert target is None


def test_a_target_is_timed_here_at_widths_that_settings_allow(tmp_path: Path) -> None:
    case, kept = Case(), tmp_path / "times.json"
    with case.target(kept=kept, round_to=4) as target:
        assert isinstance(target, Deadline)
        assert target.candidates == {group.name: timed_widths(group, 2, 4) for group in case.groups}
        target._clock.model(target._clock.layers(target.candidates))
    assert len(StoredTimes.read(kept).layers) > 3


def test_a_profile_has_all_that_a_decision_elsewhere_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, path = Case(), tmp_path / "times.json"
    state = snapshot(case.model)
    stored = case.profile(path, latency_at=LatencyAt(batch_size=4))
    assert same_state(snapshot(case.model), state)
    assert stored.latency_at == "batch 4"
    shares = [1 / network.times.speedup for network in stored.networks]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert len(shares) >= 3
    totals = [network.total for network in stored.networks]
    assert totals == sorted(totals, reverse=True)

    def refuse(*_: Any) -> float:
        raise AssertionError("nothing is timed here")

    monkeypatch.setitem(latency.TIMERS, "cpu", refuse)
    with case.target(latency_table=path, latency_at=LatencyAt(batch_size=4)) as target:
        assert isinstance(target, TableDeadline)
        target.check()
        whole = {group.name: group.width for group in case.groups}
        assert target.seconds(whole) == pytest.approx(stored.networks[0].times.before.median)


def test_a_profile_under_other_conditions_is_refused(tmp_path: Path) -> None:
    case, path = Case(), tmp_path / "times.json"
    case.profile(path)
    at = LatencyAt(batch_size=4)
    with (
        pytest.raises(ValueError, match=r"timed at batch 1, and latency_at is batch 4\. Write it anew"),
        case.target(latency_table=path, latency_at=at),
    ):
        pass


def test_a_table_without_a_target_is_refused(tmp_path: Path) -> None:
    case, path = Case(), tmp_path / "times.json"
    case.profile(path)
    with (
        pytest.raises(
            ValueError, match=r"latency_table=.* set selection\.latency, or leave latency_table"
        ),
        case.target(None, latency_table=path),
    ):
        pass
