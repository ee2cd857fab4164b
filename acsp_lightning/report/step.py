"""The record of a cut, with the verdict of the accuracy guard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from acsp_lightning.functional import ChannelSelection, WidthReason
from acsp_lightning.measure.accuracy import ClassCounts
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.measure.latency import LatencyComparison
from acsp_lightning.selection.maps import GroupMap
from acsp_lightning.selection.network_times import NetworkTimes
from acsp_lightning.selection.path import NetworkCurve
from acsp_lightning.selection.scores import Comparison
from acsp_lightning.selection.tradeoff import TradeOff
from acsp_lightning.serialization import from_record, to_record
from acsp_lightning.structure.plan import PruningPlan

MOST_NAMES = 4  # of layers in a summary
LONGEST = 30  # letters of such a name


class Outcome(StrEnum):
    """Outcome of a cut under the accuracy guard."""

    RECOVERED = "recovered"
    HALVED = "rolled back, to be cut again at half the depth"
    LEFT = "rolled back, left as it was"
    UNJUDGED = "not judged, since the fit ended before"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict of the accuracy guard on a cut.

    Attributes:
        monitor: name of the metric.
        before: its value in the captured validation.
        after: its value after fine-tuning; None if there was no such validation.
        outcome: outcome of the cut.
        allowed: the worst value that counts as recovered; None: not recorded.
    """

    monitor: str
    before: float
    after: float | None
    outcome: Outcome
    allowed: float | None = None


@dataclass(frozen=True, slots=True)
class FitEnd:
    """The network at the end of the fit.

    Attributes:
        complexity: its complexity, as that of the cut.
        classes: its accuracy on the captured validation batches by class; None without class scores.
    """

    complexity: Complexity
    classes: ClassCounts | None

    @property
    def accuracy(self) -> float | None:
        """Its top-1 accuracy, in [0, 1]; None without class scores."""
        return None if self.classes is None else self.classes.accuracy


OTHER_FORMAT = "Read the report.html beside it, or draw it with the version that wrote it."


@dataclass(frozen=True, slots=True)
class PruningStep:
    """The record of one cut.

    Attributes:
        epoch: zero-based epoch whose validation was captured; the cut came at the start of the next.
            None: a preview, which cuts only a copy.
        plan: the kept indices of every layer side that changed.
        selections: the selection for every group considered, by group name.
        layers: for every producer in these groups, the number of output channels before and after.
        before: complexity of the network before the cut, of one forward pass on the example inputs.
        after: the same after it.
        accuracy_before: top-1 accuracy before the cut, in [0, 1], on all samples of the captured
            validation batches, those held back included; None if forward does not return class scores.
        accuracy_after: the same straight after the cut, before any training step.
        samples: number of validation samples captured, those held back not included.
        comparison: what the distances between channels were computed from.
        network: damage to the whole network against its FLOPs, if it set the widths; else None.
        verdict: verdict of the accuracy guard; None without a guard, and while it is pending.
        latency: latencies before the cut and straight after it, timed alternately in one run, for each
            requested batch size.
        averaged: whether the accuracies are those of averaged weights (WeightAveraging), which
            validation uses, and not of the weights in training.
        maps: maps of the channels and the classes that they separate, by group name, of the groups that
            lost channels; empty if they could not be computed.
        classes_before: the accuracy before the cut by class; None without class scores.
        classes_after: the same straight after it.
        class_names: names of the classes, as far as the data has them.
        left_whole: why layers that were asked for cannot be cut, by name of their group, and why those
            are not that residual=True would add.
        sums: what was decided about residual sums, as a sentence; None if there was nothing to decide.
        norms: layers that the cut approximates: norms and standardised filters, of which statistics are
            those of the channels that stay.
        trade_off: what cuts of several depths were measured to cost; None if none was measured.
        times: predicted and measured times of the network and its layers, where a share of its time was
            asked for; else None.
        end: the network at the end of the fit, in the report of its last cut; else None.
    """

    epoch: int | None
    plan: PruningPlan
    selections: Mapping[str, ChannelSelection]
    layers: Mapping[str, tuple[int, int]]
    before: Complexity
    after: Complexity
    accuracy_before: float | None
    accuracy_after: float | None
    samples: int
    comparison: Comparison
    network: NetworkCurve | None = None
    verdict: Verdict | None = None
    latency: Sequence[LatencyComparison] = ()
    maps: Mapping[str, GroupMap] = field(default_factory=dict)
    averaged: bool = False
    classes_before: ClassCounts | None = None
    classes_after: ClassCounts | None = None
    class_names: Sequence[str] = ()
    left_whole: Mapping[str, str] = field(default_factory=dict)
    sums: str | None = None
    norms: Sequence[str] = ()
    trade_off: TradeOff | None = None
    times: NetworkTimes | None = None
    end: FitEnd | None = None

    def __repr__(self) -> str:
        """A summary that fits a screen; the fields hold thousands of numbers."""
        narrower = [name for name, (before, after) in self.layers.items() if before != after]
        shown = [
            f"{_short(name)} {self.layers[name][0]} -> {self.layers[name][1]}"
            for name in narrower[:MOST_NAMES]
        ]
        if len(narrower) > MOST_NAMES:
            shown.append(f"and {len(narrower) - MOST_NAMES} more")
        lines = [
            self.title,
            f"{len(narrower)} of {len(self.layers)} layers narrower: {', '.join(shown) or 'none'}",
            f"parameters {self.before.parameters:,} -> {self.after.parameters:,}",
            f"FLOPs {self.before.flops:,} -> {self.after.flops:,}",
        ]
        if self.accuracy_before is not None and self.accuracy_after is not None:
            lines.append(f"accuracy {self.accuracy_before:.2%} -> {self.accuracy_after:.2%}")
        if self.verdict is not None:
            lines.append(f"guard: {self.verdict.outcome}")
        return f"<{type(self).__name__}: " + "\n    ".join(lines) + ">"

    def class_name(self, index: int) -> str:
        """Name of a class, or its index if that has none."""
        return self.class_names[index] if index < len(self.class_names) else str(index)

    @property
    def again(self) -> bool:
        """Whether this is the second cut of the same layers, at half the depth of the first."""
        return any(s.reason is WidthReason.HALVED for s in self.selections.values())

    @property
    def rolled_back(self) -> bool:
        """Whether the network was rolled back to its state before this cut."""
        return self.verdict is not None and self.verdict.outcome in (Outcome.HALVED, Outcome.LEFT)

    @property
    def title(self) -> str:
        """Title of the record."""
        if self.epoch is None:
            return "Preview: what a cut would do"
        return f"Cut after epoch {self.epoch}{', again, at half the depth' if self.again else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON, with a format mark: tensors become lists, non-finite None."""
        return to_record(self, json=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PruningStep":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: if ``data`` is not such a record, or one of another version; the message names
                the first field that does not match.
        """
        return from_record(cls, data, OTHER_FORMAT)


def reference_accuracy(steps: Sequence[PruningStep]) -> float | None:
    """Accuracy of the network before the first of some cuts, on samples held back from the capture.

    None if there was no cut, or none was measured.
    """
    first = next((step.trade_off for step in steps if step.trade_off is not None), None)
    return None if first is None else first.depths[0].fidelity.accuracy


def time_taken(steps: Sequence[PruningStep]) -> float:
    """Share of the time of the first uncut network that is left after some cuts; 1 if none was timed."""
    standing = [step.times for step in steps if step.times is not None and not step.rolled_back]
    return standing[-1].reached if standing else 1.0


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
