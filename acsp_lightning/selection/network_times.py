"""Predicted and measured times of a network and its layers, as a record of a cut keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.latency import Latency


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Times of one layer, run by itself, in seconds.

    Attributes:
        before: with all channels.
        predicted: after the cut, from times of other widths; None if the widths were given.
        after: after the cut, measured; None if times are those of a table.
    """

    before: float
    predicted: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class TimeCheck:
    """A planned network that was really cut on a copy and timed in turns with the uncut one.

    Attributes:
        predicted: share of the time that was predicted.
        measured: the share that was measured.
    """

    predicted: float
    measured: float


@dataclass(frozen=True, slots=True)
class NetworkTimes:
    """Times of a network and its layers before and after a cut.

    Attributes:
        asked: share of the time of the first uncut network that ``selection.latency`` asks for.
        taken: share of that time that the network took before this cut; 1 at the first one.
        at: the conditions.
        before: of the network before this cut.
        after: of the planned one, on a copy, timed in turns with it; None if times are those of a table.
        measured: share of the time before this cut that ``after`` is, by turns; None likewise.
        predicted: share of the time before this cut that was predicted for the planned network, before
            it was timed; None if the widths were given.
        smallest: share of the time before this cut that the smallest network takes; None if the widths
            were given.
        checks: planned networks until one met the target, in order.
        layers: the layers that can be timed by themselves, in order of execution.
        spent: seconds that measuring took.
        table: the file that all times are from; empty if they were measured here.
    """

    asked: float
    taken: float
    at: LatencyAt
    before: Latency
    after: Latency | None
    measured: float | None
    predicted: float | None
    smallest: float | None
    checks: tuple[TimeCheck, ...]
    layers: Mapping[str, LayerTime] = field(default_factory=dict)
    spent: float = 0.0
    table: str = ""

    @property
    def share(self) -> float:
        """Share of the time before this cut that the network takes after it, as far as it is known."""
        known = self.predicted if self.measured is None else self.measured
        return 1.0 if known is None else known

    @property
    def reached(self) -> float:
        """Share of the time of the first uncut network that the network takes after this cut."""
        return self.taken * self.share
