"""What a cut means for single classes, as rows of tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from acsp_lightning.functional import ClassSeparation
from acsp_lightning.measure.accuracy import ClassCounts
from acsp_lightning.report.step import PruningStep


@dataclass(frozen=True, slots=True)
class ClassRow:
    """The accuracy of one class.

    Attributes:
        name: name of the class.
        samples: its validation samples.
        before: share of them classified correctly before the cut, in [0, 1].
        after: the same straight after it.
        end: the same at the end of the fit; None while that is to come.
    """

    name: str
    samples: int
    before: float
    after: float
    end: float | None

    @property
    def change(self) -> float:
        """What the class gained, as far as is known."""
        return (self.after if self.end is None else self.end) - self.before

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        shares = [self.before, self.after, *([] if self.end is None else [self.end])]
        texts = [f"{share:.1%}" for share in shares]
        return (self.name, f"{self.samples:,}", *texts, f"{100 * self.change:+.1f}")


def class_rows(step: PruningStep) -> list[ClassRow]:
    """One row for each class with samples, in order; empty without class scores."""
    before, after = step.classes_before, step.classes_after
    if before is None or after is None:
        return []
    end = None if step.end is None else step.end.classes
    seen = before.seen.tolist()
    old, new = _shares(before, len(seen)), _shares(after, len(seen))
    last = None if end is None else _shares(end, len(seen))
    return [
        ClassRow(
            step.class_name(index), count, old[index], new[index], None if last is None else last[index]
        )
        for index, count in enumerate(seen)
        if count
    ]


def _shares(counts: ClassCounts, classes: int) -> list[float]:
    shares = (counts.right / counts.seen.clamp(min=1)).tolist()
    return [*shares, *[0.0] * (classes - len(shares))][:classes]


def pair_cells(classes: ClassSeparation, step: PruningStep) -> Sequence[tuple[str, ...]]:
    """The pairs of classes that lose most, by name, with their distances."""
    return [
        (
            f"{step.class_name(pair.first)} | {step.class_name(pair.second)}",
            f"{pair.before:.2f}",
            f"{pair.after:.2f}",
            f"{pair.after - pair.before:+.2f}",
        )
        for pair in classes.worst
    ]
