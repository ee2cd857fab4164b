"""A network that is timed: whole, really cut to widths, and layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from acsp_lightning.measure.conditions import LatencyAt
from acsp_lightning.measure.latency import LatencyComparison, compare_latency
from acsp_lightning.measure.layer_times import layer_calls, time_layers
from acsp_lightning.measure.time_table import Stopwatch, TimeTable
from acsp_lightning.progress import tracked
from acsp_lightning.selection.time_model import TimedLayer, TimeModel, timed_layers
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.randomness import random_state_restored
from acsp_lightning.structure.surgery import apply_plan, parameters_to_slice

MOST_SECONDS = 90.0  # for the layers of a network; networks take up to as much again
LONG_WAIT = 30.0  # seconds that warrant a message
FEWEST_PASSES = 9
SECONDS = 1.0  # for each of two networks
PATIENCE = 10.0  # where these do not tell enough
SURE = 0.02  # of a ratio of two times: two standard errors that are small enough

Compare = Callable[[nn.Module, nn.Module, tuple[Any, ...], LatencyAt, float], LatencyComparison]
"""Times two networks in turns, for some seconds each."""


def compare(
    before: nn.Module, after: nn.Module, inputs: tuple[Any, ...], at: LatencyAt, seconds: float
) -> LatencyComparison:
    """Time two networks in turns, see :func:`acsp_lightning.compare_latency`."""
    (found,) = compare_latency(
        before,
        after,
        inputs,
        (at.batch_size,),
        compiled=at.compiled,
        min_runs=FEWEST_PASSES,
        min_seconds=seconds,
    )
    return found


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs layers and networks that are timed.

    Attributes:
        name: with its version; empty: torch.
        stopwatch: times layers.
        compare: times two networks in turns.
    """

    name: str
    stopwatch: Stopwatch
    compare: Compare


TORCH = Runtime("", time_layers, compare)


class Clock:
    """Times a network and its layers under some conditions; the network stays as it is.

    Args:
        model: the uncut network.
        groups: its groups of channels.
        inputs: arguments of forward.
        at: the conditions.
        table: times of layers that are known, and those that are not.
        inform: called with a message if this will take long.
        compare: times two networks in turns.

    Attributes:
        at: the conditions.
        spent: seconds spent so far.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        inputs: tuple[Any, ...],
        at: LatencyAt,
        table: TimeTable,
        inform: Callable[[str], None] = lambda message: None,
        *,
        compare: Compare = compare,
    ) -> None:
        self.at = at
        self.spent = 0.0
        self._groups = tuple(groups)
        self._model = model
        self._example = inputs
        self._table = table
        self._compare = compare
        self._inform = inform
        self._compared: dict[tuple[tuple[str, int], ...], LatencyComparison] = {}

    @cached_property
    def _network(self) -> nn.Module:
        return self.at.network(self._model)

    @cached_property
    def _inputs(self) -> tuple[Any, ...]:
        return self.at.inputs(self._example)

    def compared(self, widths: Mapping[str, int]) -> LatencyComparison:
        """The uncut network and a copy of it that is cut to some widths, timed in turns.

        For :data:`SECONDS` each, and for :data:`PATIENCE` if the ratio is not sure after that. What was
        timed before is not timed again, and a network that loses nothing is as fast as it was.

        Args:
            widths: numbers of channels; groups that are not listed keep theirs.
        """
        cut = {group.name: group.width for group in self._groups} | dict(widths)
        known = tuple(sorted(cut.items()))
        if known not in self._compared:
            began = monotonic()
            # Which channels stay makes no difference to the time.
            plan = build_plan(self._groups, {name: range(k) for name, k in cut.items()})
            smaller = eager_copy(self._network, parameters_to_slice(self._network, plan))
            apply_plan(smaller, plan)
            with random_state_restored():
                found = self._compare(self._network, smaller, self._inputs, self.at, SECONDS)
                if 2 * found.error > SURE and len(plan):
                    found = self._compare(self._network, smaller, self._inputs, self.at, PATIENCE)
            if not len(plan):
                found = replace(found, after=found.before, speedup=1.0, error=0.0)
            self._compared[known] = found
            self.spent += monotonic() - began
        return self._compared[known]

    def layers(self, candidates: Mapping[str, Sequence[int]]) -> tuple[TimedLayer, ...]:
        """The layers that can be timed by themselves.

        Args:
            candidates: numbers of channels below the full one at which they may be timed, ascending, by
                name of the group.
        """
        calls = layer_calls(self._network, self._inputs)
        return timed_layers(self._network, self._groups, calls, candidates)

    def model(self, layers: Sequence[TimedLayer]) -> TimeModel:
        """Time the layers at their candidate widths."""
        kinds = {layer.kind: layer for layer in layers}
        began, known = monotonic(), dict[tuple[object, ...], NDArray[np.float64]]()
        with random_state_restored():
            for kind, layer in tracked(kinds.items(), "Timing layers"):
                left = MOST_SECONDS - (monotonic() - began)
                known[kind] = layer.times(self._table, max(0.0, left) / (len(kinds) - len(known)))
                wait = (monotonic() - began) * len(kinds) / len(known)
                if len(known) == 1 and wait > LONG_WAIT:
                    self._inform(
                        f"Timing {len(kinds)} kinds of layers at their widths will take about "
                        f"{min(wait, MOST_SECONDS):.0f} s; selection.flops decides without."
                    )
        self.spent += monotonic() - began
        return TimeModel(layers, {layer.name: known[layer.kind] for layer in layers})

    def seconds(self, layers: Sequence[TimedLayer], widths: Mapping[str, int]) -> dict[str, float]:
        """Measured time of every layer with some widths; groups that are not listed keep theirs."""
        began = monotonic()
        samples = [sample for layer in layers for sample in layer.samples(widths, widths)]
        with random_state_restored():
            times = iter(self._table.of(samples, MOST_SECONDS / 10))
        self.spent += monotonic() - began
        return {layer.name: sum(islice(times, len(layer.calls))) for layer in layers}
