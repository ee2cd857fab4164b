"""Predicted and measured times of a network and its layers, as a record of a cut keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.latency import LatencyComparison


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Times of one layer, run by itself, in seconds.

    Attributes:
        before: with all channels.
        predicted: after the cut, from times of other widths; None if the widths were given.
        after: after the cut, measured.
    """

    before: float
    predicted: float | None
    after: float


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
        network: the network and the planned one, on a copy, timed in turns.
        predicted: share of the time before this cut that was predicted for the planned network, before
            it was timed; None if the widths were given.
        smallest: share of the time before this cut that the smallest network takes; None if the widths
            were given.
        checks: planned networks until one met the target, in order.
        layers: the layers that can be timed by themselves, in order of execution.
        spent: seconds that measuring took.
    """

    asked: float
    taken: float
    at: LatencyAt
    network: LatencyComparison
    predicted: float | None
    smallest: float | None
    checks: tuple[TimeCheck, ...]
    layers: Mapping[str, LayerTime] = field(default_factory=dict)
    spent: float = 0.0

    @property
    def share(self) -> float:
        """Share of the time before this cut that the network takes after it."""
        return 1 / self.network.speedup

    @property
    def reached(self) -> float:
        """Share of the time of the first uncut network that the network takes after this cut."""
        return self.taken * self.share
