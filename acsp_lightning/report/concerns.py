"""Warnings about a cut, whatever its settings."""

from collections.abc import Iterator

from acsp_lightning.report.step import PruningStep

# With fewer samples an accuracy is too uncertain for a warning.
LEAST_SAMPLES = 100


def concerns(step: PruningStep) -> Iterator[str]:
    """Warn of a network at chance accuracy, and of a cut that loses over half of the accuracy."""
    before, after, samples = step.accuracy_before, step.accuracy_after, step.samples
    if before is None or after is None or samples < LEAST_SAMPLES:
        return
    classes = step.comparison.classes
    chance = 1 / classes
    if before <= chance + (chance * (1 - chance) / samples) ** 0.5:
        yield (
            f"The network classifies {before:.1%} of the captured samples rightly, which is chance "
            f"among {classes} classes: its channels tell nothing of them yet. Train it before it is "
            "cut; if it is trained, see that read_batch= returns the labels of its inputs, and forward "
            "class scores (or pass read_outputs=)."
        )
    elif after < before / 2:
        yield (
            f"The cut took more than half of the accuracy: {before:.1%} of the captured samples were "
            f"classified rightly before it, {after:.1%} are straight after it. Cut less, with a "
            "larger selection.keep or selection.flops, or in several steps with tuning between; or set "
            "a guard, which rolls back what does not recover."
        )
