"""Time of the layers of a network as a function of the widths of its groups, from measured times."""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from acsp_lightning.measure.layer_times import Call, key_of
from acsp_lightning.measure.time_table import Sample, TimeTable
from acsp_lightning.selection.axis import Axis
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.layers import channel_dim, side_width
from acsp_lightning.structure.plan import PruningPlan, SideCut
from acsp_lightning.structure.surgery import apply_plan

COARSE = 5  # widths of each of both sides that are timed in every combination

Widths = Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class TimedLayer:
    """A layer with the sides that groups have in it.

    Attributes:
        name: qualified name.
        module: the layer, uncut.
        calls: how forward calls it.
        inner: its input side, if groups are read there; else None.
        outer: its output side, likewise.
        tied: its input side, if whole groups of a convolution read there what goes with their output.
    """

    name: str
    module: nn.Module
    calls: tuple[Call, ...]
    inner: Axis | None = None
    outer: Axis | None = None
    tied: Axis | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """Layers of one kind take the same times."""
        keys = (key_of(self.module, call) for call in self.calls)
        return (*keys, *(None if axis is None else axis.counts for axis in (self.inner, self.outer)))

    def samples(self, inner: Widths, outer: Widths) -> list[Sample]:
        """The layer with some widths of the groups in its input and its output, for every call."""
        sides = [("in", self.inner, inner), ("in", self.tied, outer), ("out", self.outer, outer)]
        cuts = [
            SideCut("layer", side, axis.width, kept)
            for side, axis, widths in sides
            if axis is not None and len(kept := axis.kept(widths)) < axis.width
        ]

        def sample(call: Call) -> tuple[nn.Module, Call]:
            if not cuts:
                return eager_copy(self.module), call
            layer = _cut(self.module, PruningPlan(tuple(cuts)))
            return layer, call.resized(channel_dim(layer), side_width(layer, "in"))

        return [lambda call=call: sample(call) for call in self.calls]  # type: ignore[misc]

    def times(self, table: TimeTable, seconds: float) -> NDArray[np.float64]:
        """Seconds at the points of both axes, (I, O); 1 for a side without an axis.

        With two of them every width of each is timed at the full width of the other, and some of both
        in every combination, in between which is interpolated: what single widths cost more or less
        than their neighbours they do at any width of the other side.

        Args:
            table: knows times, and takes those that it does not.
            seconds: time to spend on that.
        """
        inner, outer = _points(self.inner), _points(self.outer)
        rows, columns = _coarse(self.inner), _coarse(self.outer)
        last = (len(inner) - 1, len(outer) - 1)
        pairs = {(row, last[1]) for row in range(len(inner))} | {
            (last[0], column) for column in range(len(outer))
        }
        pairs |= set(itertools.product(rows, columns))
        ordered = sorted(pairs)
        samples = [self.samples(inner[row], outer[column]) for row, column in ordered]
        taken = table.of([sample for one in samples for sample in one], seconds)
        known = dict(zip(ordered, np.reshape(taken, (len(ordered), -1)).sum(1).tolist(), strict=True))
        if 1 in (len(inner), len(outer)):
            return np.array([[known[row, column] for column in range(len(outer))]
                             for row in range(len(inner))])  # fmt: skip
        from scipy.interpolate import RegularGridInterpolator

        coarse = np.array([[known[row, column] for column in columns] for row in rows])
        assert self.inner is not None
        assert self.outer is not None
        ins, outs = np.array(self.inner.counts), np.array(self.outer.counts)
        between = RegularGridInterpolator((ins[rows], outs[columns]), coarse)
        smooth = between(tuple(np.meshgrid(ins, outs, indexing="ij")))
        by_row = np.array([known[row, last[1]] for row in range(len(inner))]) / smooth[:, -1]
        by_column = np.array([known[last[0], column] for column in range(len(outer))]) / smooth[-1]
        return np.asarray(smooth * by_row[:, None] * by_column)


def _points(axis: Axis | None) -> Sequence[Widths]:
    return ({},) if axis is None else axis.points


def _coarse(axis: Axis | None) -> list[int]:
    """Places of the points of an axis that are combined with those of the other: multiples, and ends."""
    if axis is None:
        return [0]
    whole = [place for place, count in enumerate(axis.counts) if count % 8 == 0]
    last = len(axis.counts) - 1
    inside = [place for place in whole if 0 < place < last] or list(range(1, last))
    picked = np.linspace(0, len(inside) - 1, min(len(inside), COARSE - 2)).round().astype(int)
    return sorted({0, last, *(inside[place] for place in picked)})


def _cut(module: nn.Module, plan: PruningPlan) -> nn.Module:
    holder = nn.Module()
    holder.layer = eager_copy(module)
    apply_plan(holder, plan)
    return holder.layer


def timed_layers(
    model: nn.Module,
    groups: Iterable[ChannelGroup],
    calls: Mapping[str, tuple[Call, ...]],
    candidates: Mapping[str, Sequence[int]],
) -> tuple[TimedLayer, ...]:
    """The layers of a network that can be timed by themselves, with the groups in them.

    Those that are cut along parameters of their own, and not as layers of a known kind, cannot.

    Args:
        model: the uncut network.
        groups: its groups.
        calls: how forward calls its layers.
        candidates: numbers of channels below the full one, ascending, by name of the group.
    """
    parts: dict[str, dict[str, list[tuple[ChannelGroup, LayerSide]]]] = {}
    others: set[str] = set()
    for group in groups:
        for side in group.sides:
            if side.side not in ("in", "out"):
                others.add(side.layer)
            else:
                what = "tied" if side in group.passthrough and side.side == "in" else side.side
                parts.setdefault(side.layer, {}).setdefault(what, []).append((group, side))
    found = []
    for name, made in calls.items():
        if name in others:
            continue
        module = model.get_submodule(name)
        own = parts.get(name, {})
        inner, tied, outer = (
            Axis.of(own[what], candidates) if what in own else None for what in ("in", "tied", "out")
        )
        found.append(TimedLayer(name, module, made, inner, outer, tied))
    return tuple(found)


class TimeModel:
    """Seconds of the layers as a function of the widths of groups; see :class:`CostModel`.

    Args:
        layers: the layers.
        times: seconds at the points of their axes, by layer, as :meth:`TimedLayer.times`.
    """

    def __init__(self, layers: Iterable[TimedLayer], times: Mapping[str, NDArray[np.float64]]) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self._times = {name: found.tolist() for name, found in times.items()}
        self._by_group: dict[str, list[TimedLayer]] = {}
        for layer in self.layers.values():
            parts = [part for axis in (layer.inner, layer.outer) if axis for part in axis.parts]
            for name in dict.fromkeys(group.name for group, _ in parts):
                self._by_group.setdefault(name, []).append(layer)

    def total(self, widths: Widths) -> float:
        """Seconds of all layers; groups that are not listed have their full width."""
        return sum(self.of(layer, widths) for layer in self.layers)

    def saved(self, widths: Widths, group: str, k: int) -> float:
        """Seconds saved if ``group`` keeps ``k`` channels, with all others at ``widths``."""
        after = {**widths, group: k}
        names = [layer.name for layer in self._by_group.get(group, ())]
        return sum(self.of(name, widths) - self.of(name, after) for name in names)

    def of(self, layer: str, widths: Widths) -> float:
        """Seconds of one layer; between points of an axis they are interpolated."""
        known, times = self.layers[layer], self._times[layer]
        low, high, rest = _between(known.inner, widths)
        first, second = (_along(times[row], known.outer, widths) for row in (low, high))
        return first + rest * (second - first)


def _along(times: Sequence[float], axis: Axis | None, widths: Widths) -> float:
    low, high, rest = _between(axis, widths)
    return times[low] + rest * (times[high] - times[low])


def _between(axis: Axis | None, widths: Widths) -> tuple[int, int, float]:
    """Places of the points on both sides of some widths, and how far along these are, in [0, 1]."""
    if axis is None:
        return 0, 0, 0.0
    count = axis.count(widths)
    high = min(bisect_left(axis.counts, count), len(axis.counts) - 1)
    if high == 0 or axis.counts[high] <= count:
        return high, high, 0.0
    below, above = axis.counts[high - 1], axis.counts[high]
    return high - 1, high, (count - below) / (above - below)
