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
        if self.mode == "max" and any(word in self.monitor for word in ("loss", "error")):
            raise ValueError(
                f"monitor is {self.monitor!r} with mode='max', under which a rise would be no drop; set "
                "mode='min'."
            )

    def value(self, metrics: Mapping[str, Tensor]) -> float:
        """The metric in the validation that was captured.

        Raises:
            ValueError: if it was not logged, and says what was; or if it is not finite.
        """
        if self.monitor not in metrics:
            raise ValueError(
                f"monitor is {self.monitor!r}, not logged in the validation that was captured; "
                f"logged were {', '.join(map(repr, sorted(metrics))) or 'no metrics'}. Name one of "
                "them, or log it in every validation."
            )
        value = float(metrics[self.monitor])
        if not math.isfinite(value):
            raise ValueError(
                f"{self.monitor!r} is {value} in the validation that was captured, and max_drop needs a "
                "finite value to compare with: look at the learning rate, or prune earlier."
            )
        return value

    def waits(self, trial: Trial) -> bool:
        """Whether a trial, perhaps out of a checkpoint, is one of this guard's."""
        return (trial.monitor, trial.mode) == (self.monitor, self.mode)

    def accepts(self, before: float, after: float) -> bool:
        """Whether the drop from ``before`` to ``after`` is allowed; never if ``after`` is NaN."""
        return (before - after if self.mode == "max" else after - before) <= self.max_drop

    def check_epochs(self, epochs: Sequence[int], max_epochs: int | None, every: int = 1) -> None:
        """Check that every cut can be judged before the next capture, and before the fit ends.

        Args:
            epochs: zero-based epochs whose validation is captured.
            max_epochs: of the fit; None: not known.
            every: a validation comes every so many epochs.

        Raises:
            ValueError: names the epoch, and what is allowed.
        """
        ordered = sorted(epochs)
        for first, second in pairwise(ordered):
            last = self._judged(self._judged(first, every), every)
            if second <= last:
                raise ValueError(
                    f"epochs has {first} and {second}, but with max_drop and patience={self.patience} "
                    "the cut after the first, and the one at half its depth that may follow, take until "
                    f"epoch {last} to be judged; let the next capture come from epoch {last + 1}."
                )
        judged = self._judged(ordered[-1], every)
        if max_epochs is not None and judged >= max_epochs:
            raise ValueError(
                f"epochs has {ordered[-1]}, but with max_epochs={max_epochs} the cut after it cannot be "
                f"judged: with patience={self.patience} that takes the validation of epoch {judged}. "
                "Raise max_epochs, or cut earlier."
            )

    def _judged(self, epoch: int, every: int) -> int:
        """Epoch in whose validation a cut is judged that follows another epoch."""
        due = epoch + self.patience
        return due + -(due + 1) % every
