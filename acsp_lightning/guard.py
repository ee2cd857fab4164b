"""The accuracy guard: whether a network has recovered from a cut, and what it takes to go back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Literal

from torch import Tensor

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
        captured: what it rests on, to cut once more by it.
        snapshot: the network before it.
        before: the metric before it.
        due: epoch after whose validation it is judged.
        after: the metric in the latest validation from that epoch on.
    """

    captured: Captured
    snapshot: Snapshot
    before: float
    due: int
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """When a cut counts as recovered.

    Attributes:
        max_drop: how much worse the metric may be than before the cut, in its own units, at least 0.
        monitor: a metric that is logged in validation.
        mode: "max" if more is better, "min" if less is.
        patience: epochs of tuning before the judgement, at least 1.
    """

    max_drop: float
    monitor: str
    mode: Literal["max", "min"]
    patience: int

    def __post_init__(self) -> None:
        number = isinstance(self.max_drop, int | float) and not isinstance(self.max_drop, bool)
        if not number or not 0 <= self.max_drop < math.inf:
            raise ValueError(
                f"max_drop is {self.max_drop!r}; it must be a finite number >= 0 in the units of "
                f"{self.monitor!r}, such as 0.01, or None for no guard."
            )
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode is {self.mode!r}; it must be 'max' or 'min'.")

    def value(self, metrics: Mapping[str, Tensor]) -> float:
        """The metric among those that are logged.

        Raises:
            ValueError: if it is not there; says which are.
        """
        if self.monitor not in metrics:
            raise ValueError(
                f"monitor is {self.monitor!r}, which was not logged in validation; logged were "
                f"{', '.join(map(repr, sorted(metrics))) or 'no metrics'}. Name one of them, or log "
                "it in validation_step."
            )
        return float(metrics[self.monitor])

    def accepts(self, before: float, after: float) -> bool:
        """Whether the drop from ``before`` to ``after`` is allowed; never if ``after`` is NaN."""
        return (before - after if self.mode == "max" else after - before) <= self.max_drop

    def check_epochs(self, epochs: Sequence[int], max_epochs: int | None) -> None:
        """Check that every cut can be judged before the next capture, and before the fit ends.

        Args:
            epochs: zero-based epochs whose validation is captured.
            max_epochs: of the fit; None: not known.

        Raises:
            ValueError: names the epoch, and what is allowed.
        """
        ordered = sorted(epochs)
        apart = 2 * self.patience + 1
        for first, second in pairwise(ordered):
            if second - first < apart:
                raise ValueError(
                    f"epochs has {first} and {second}, but with max_drop and patience={self.patience} a "
                    "cut, and the one at half its depth that may follow, are judged only after "
                    f"{apart - 1} epochs; let the captures be at least {apart} epochs apart."
                )
        if max_epochs is not None and ordered[-1] + self.patience >= max_epochs:
            raise ValueError(
                f"epochs has {ordered[-1]}, but with max_epochs={max_epochs} the cut after it is not "
                f"tuned for patience={self.patience} epochs before the fit ends. Raise max_epochs, or "
                "cut earlier."
            )
