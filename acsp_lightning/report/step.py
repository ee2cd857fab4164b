"""The accuracy guard: what it found, and what it takes to go back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from acsp_lightning.functional import ChannelSelection, WidthReason
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.measure.latency import LatencyComparison
from acsp_lightning.selection.maps import GroupMap
from acsp_lightning.selection.path import NetworkCurve
from acsp_lightning.selection.scores import Comparison
from acsp_lightning.serialization import from_record, to_record
from acsp_lightning.structure.plan import PruningPlan


class Outcome(StrEnum):
    """What became of a cut."""

    RECOVERED = "recovered"
    HALVED = "rolled back, to be cut again at half the depth"
    LEFT = "rolled back, left as it was"
    UNJUDGED = "not judged, since the fit ended before"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard found and did.

    Attributes:
        monitor: name of the metric.
        before: its value in the validation that was captured.
        after: its value after the tuning; None if there was no such validation.
        outcome: what became of the cut.
    """

    monitor: str
    before: float
    after: float | None
    outcome: Outcome


OTHER_FORMAT = "Read the report.html beside it, or draw it with the version that wrote it."


@dataclass(frozen=True, slots=True)
class PruningStep:
    """One cut, with its evidence.

    Attributes:
        epoch: zero-based epoch whose validation was captured; the cut came at the start of the next.
            None: a preview, for which nothing was cut.
        plan: the kept indices of every layer side that changed.
        selections: the selection for every group that was looked at, by group name.
        layers: for every layer whose filters make channels of these groups, the number of output
            channels before and after.
        before: complexity of the network before the cut, of one forward pass on the example inputs.
        after: the same after it.
        accuracy_before: top-1 accuracy on the captured validation batches before the cut, in [0, 1];
            None if forward does not give logits.
        accuracy_after: the same straight after the cut, before any training step.
        samples: validation samples that were captured.
        comparison: what the distances between channels rest on.
        network: damage to the whole network against its FLOPs, where it decided; else None.
        verdict: what the accuracy guard found; None without a guard, and while it waits.
        latency: the network before the cut and straight after it, timed in turns in one run, for each
            batch size that was asked for.
        averaged: whether the accuracies are those of averaged weights (WeightAveraging), as validation
            sees them, and not of the weights in training.
        maps: maps of the channels and the classes that they separate, by group name, of the groups that
            lost channels; empty where nobody looks at them.
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

    @property
    def again(self) -> bool:
        """Whether this is the second cut of the same layers, at half the depth of the first."""
        return any(s.reason is WidthReason.HALVED for s in self.selections.values())

    @property
    def rolled_back(self) -> bool:
        """Whether the network was put back as it had been before this cut."""
        return self.verdict is not None and self.verdict.outcome in (Outcome.HALVED, Outcome.LEFT)

    @property
    def title(self) -> str:
        """What this is, in a few words."""
        if self.epoch is None:
            return "Preview: what a cut would do"
        return f"Cut after epoch {self.epoch}{', again, at half the depth' if self.again else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON with a format mark: tensors become lists, what is not finite None."""
        return to_record(self, json=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PruningStep":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: if ``data`` is no such record, or one of another version: names the first field
                that does not fit.
        """
        return from_record(cls, data, OTHER_FORMAT)
