"""The accuracy guard: what it found, and what it takes to go back."""

from dataclasses import dataclass
from enum import StrEnum

from acsp_lightning.capture import Captured
from acsp_lightning.snapshot import Snapshot


class Outcome(StrEnum):
    """What became of a cut."""

    RECOVERED = "recovered"
    HALVED = "undone, to be cut again at half the depth"
    LEFT = "undone, left as it was"
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


@dataclass(frozen=True, slots=True)
class Trial:
    """A cut that has yet to prove itself.

    Attributes:
        monitor: name of the metric that judges it.
        mode: "max" if more is better, "min" if less is.
        captured: what it rests on, to cut once more by it.
        snapshot: the network before it.
        before: the metric before it.
        due: epoch after whose validation it is judged.
        after: the metric in the latest validation from that epoch on.
    """

    monitor: str
    mode: str
    captured: Captured
    snapshot: Snapshot
    before: float
    due: int
    after: float | None = None
