"""Warnings about a cut, whatever its settings."""

from collections.abc import Iterator

from acsp_lightning.functional import WidthReason
from acsp_lightning.measure.accuracy import is_at_chance
from acsp_lightning.report.step import PruningStep
from acsp_lightning.selection.tradeoff import KNEE_LOSS

# With fewer samples an accuracy is too uncertain for a warning.
LEAST_SAMPLES = 100

MISSED = 0.1  # of a target in time


def concerns(step: PruningStep) -> Iterator[str]:
    """Warn of a volume that could not be had, a network at chance, and a cut that loses half."""
    yield from _volume(step)
    yield from _accuracy(step)


def _volume(step: PruningStep) -> Iterator[str]:
    """Warn where nothing is cut, or less than was asked for."""
    reasons = {selection.reason for selection in step.selections.values()}
    if WidthReason.NO_MEASURED_KNEE in reasons:
        yield (
            "The measured trade-off of accuracy and FLOPs has no knee: no accuracy is lost at any depth "
            "that min_channels and round_to allow. Without one every channel is kept. Set "
            "selection.tolerance or selection.flops to say how much to cut."
        )
    if WidthReason.MEASURED_KNEE in reasons and step.trade_off is not None and step.trade_off.knee == 0:
        yield (
            f"Every measured cut loses more than {KNEE_LOSS:.1%} of accuracy; every channel is kept. "
            "Set selection.tolerance or selection.flops to cut all the same, or train the network "
            "longer before it is cut."
        )
    if WidthReason.NOTHING_TOLERATED in reasons:
        yield (
            "Every measured cut loses more accuracy than selection.tolerance allows; every channel is "
            "kept. Allow more, or train the network longer before it is cut."
        )
    yield from _time(step)
    trade_off = step.trade_off
    if trade_off is None or trade_off.tolerated is None or WidthReason.TOLERANCE not in reasons:
        return
    asked = f"flops={trade_off.requested}"
    place = trade_off.targets.get(trade_off.requested or "")
    if trade_off.in_time is not None and step.times is not None:
        asked, place = f"latency={step.times.asked:g}", trade_off.in_time
    if place is not None and place > trade_off.tolerated:
        kept = trade_off.depths[trade_off.tolerated].flops / trade_off.whole
        lost = trade_off.depths[place].fidelity.drop
        yield (
            f"{asked} would cost {lost.mean:.2%} ± {lost.error:.2%} of accuracy, "
            f"more than selection.tolerance allows; the cut stops at {kept:.1%} of the FLOPs. Allow "
            f"more, or leave {asked.partition('=')[0]} out."
        )


def _time(step: PruningStep) -> Iterator[str]:
    """Warn where the network that was planned for a time takes noticeably longer."""
    reasons = {selection.reason for selection in step.selections.values()}
    times = step.times
    if times is None or not times.checks or WidthReason.LEAST_DAMAGE_IN_TIME not in reasons:
        return
    # With layers_per_epoch, networks were checked of which this cut is the beginning.
    if times.measured not in [check.measured for check in times.checks]:
        return
    if times.reached > (1 + MISSED) * times.asked:
        yield (
            f"latency={times.asked:g} was not met within {MISSED:.0%}: of {len(times.checks)} networks "
            f"that were timed the closest takes {times.reached:.3f} of the time. Time where "
            "nothing else runs, or raise latency."
        )


def _accuracy(step: PruningStep) -> Iterator[str]:
    """Warn of a network at chance accuracy, and of a cut that loses over half of the accuracy."""
    before, after, samples = step.accuracy_before, step.accuracy_after, step.samples
    if before is None or after is None or samples < LEAST_SAMPLES:
        return
    classes = step.comparison.classes
    if is_at_chance(before, samples, classes):
        yield (
            f"The network classifies {before:.1%} of the validation samples rightly, which is chance "
            f"among {classes} classes: its channels tell nothing of them yet. Train it before it is "
            "cut; if it is trained, see that read_batch= returns the labels of its inputs, and forward "
            "class scores (or pass read_outputs=)."
        )
    elif after < before / 2:
        yield (
            f"The cut took more than half of the accuracy: {before:.1%} of the validation samples "
            f"were classified rightly before it, {after:.1%} are straight after it. Cut less, with a "
            "larger selection.keep or selection.flops, or in several steps with tuning between; or set "
            "a guard, which rolls back what does not recover."
        )
