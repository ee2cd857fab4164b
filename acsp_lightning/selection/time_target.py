"""What deciding needs of a target in time, where its times come from, and a profile for elsewhere."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.layer_times import device_of
from acsp_lightning.measure.time_table import (
    Profile,
    TimedNetwork,
    TimeTable,
    conditions,
    kept_times,
)
from acsp_lightning.selection.axis import timed_widths
from acsp_lightning.selection.clock import TORCH, Clock, Runtime
from acsp_lightning.selection.damage import DamageCurve
from acsp_lightning.selection.deadline import Deadline
from acsp_lightning.selection.network_times import NetworkTimes
from acsp_lightning.selection.path import DamagePath
from acsp_lightning.selection.table_deadline import TableDeadline, read_table, table_clock
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.groups import ChannelGroup

LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the channels, at which a profile times networks


class TimeTarget(Protocol):
    """A share of the time of a network; see :class:`acsp_lightning.selection.deadline.Deadline`."""

    def check(self) -> None:
        """Raise ``ValueError`` if the target cannot be met."""

    def path(self, curves: Mapping[str, DamageCurve]) -> DamagePath:
        """The path of least damage per second saved; the curves are at :func:`timed_candidates`."""

    def widths(self, path: DamagePath) -> Mapping[str, int]:
        """The widths on it that meet the target."""

    def seconds(self, widths: Mapping[str, int]) -> float | None:
        """Predicted time of the network with some widths, if any is predicted."""

    def times(self, widths: Mapping[str, int]) -> NetworkTimes:
        """The record of a cut to some widths."""


@contextmanager
def time_target(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    inputs: tuple[Any, ...],
    settings: PruningSettings,
    kept: Path | None = None,
    taken: float = 1.0,
    inform: Callable[[str], None] = lambda message: None,
) -> Iterator[TimeTarget | None]:
    """The target that ``settings.selection.latency`` sets; None if it is not set.

    Args:
        model: the network, left as it is.
        groups: its groups that may be cut.
        inputs: arguments of forward.
        settings: what is asked for.
        kept: a file in which times of layers are kept; None: nowhere.
        taken: share of the time of the first uncut network that it takes now.
        inform: called with a message if timing will take long.

    Raises:
        ValueError: if ``settings.latency_table`` cannot be used, or is given without a target.
    """
    asked, at = settings.selection.latency, settings.latency_at
    if asked is None:
        if settings.latency_table is not None:
            raise ValueError(
                f"latency_table={settings.latency_table} has times, but no share of the time is asked "
                "for: set selection.latency, or leave latency_table out."
            )
        yield None
        return
    candidates = timed_candidates(groups, settings)
    if settings.latency_table is not None:
        file = Path(settings.latency_table)
        stored = read_table(file, at)
        clock = table_clock(model, groups, inputs, at, stored, file)
        yield TableDeadline(clock, candidates, asked, stored, file)
    else:
        with kept_times(kept, model) as table:
            clock = Clock(model, groups, inputs, at, table, inform)
            yield Deadline(clock, candidates, asked, taken)


def profile(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    inputs: tuple[Any, ...],
    settings: PruningSettings,
    inform: Callable[[str], None] = lambda message: None,
    runtime: Runtime = TORCH,
) -> Profile:
    """Time a network and its layers, cut to many widths, for a decision elsewhere.

    Args:
        model: the network, left as it is.
        groups: its groups that may be cut.
        inputs: arguments of forward.
        settings: which widths are possible, and under what conditions a pass counts.
        inform: called with a message if timing will take long.
        runtime: what runs them.

    Raises:
        ValueError: if another runtime than torch does not know the conditions.
    """
    at = settings.latency_at
    if runtime.name and at != LatencyAt(at.batch_size):
        raise ValueError(
            f"latency_at is {at}, and {runtime.name} runs exported networks in the precision of their "
            "weights, on the CPU: leave everything but batch_size out of latency_at."
        )
    table, candidates = TimeTable(stopwatch=runtime.stopwatch), timed_candidates(groups, settings)
    clock = Clock(model, groups, inputs, at, table, inform, compare=runtime.compare)
    costs = clock.model(clock.layers(candidates))
    device = torch.device("cpu") if runtime.name else device_of([model])
    networks = {}
    for level in LEVELS:
        widths = {group.name: _nearest(group, candidates[group.name], level) for group in groups}
        networks[costs.total(widths)] = clock.compared(widths)
    return Profile(
        conditions=conditions(device, runtime.name),
        layers=table.seconds,
        networks=tuple(TimedNetwork(total, times) for total, times in networks.items()),
        latency_at=str(at),
    )


def _nearest(group: ChannelGroup, ks: Sequence[int], level: float) -> int:
    return min([*ks, group.width], key=lambda k: abs(k - level * group.width))


def timed_candidates(groups: Sequence[ChannelGroup], settings: PruningSettings) -> dict[str, list[int]]:
    """Numbers of channels below the full one at which layers are timed, ascending, by group."""
    least, round_to = settings.selection.min_channels, settings.round_to
    return {group.name: timed_widths(group, least, round_to) for group in groups}
