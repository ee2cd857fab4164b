"""How many validation samples are held back from a capture, to measure cuts on."""

import math

from acsp_lightning.capture.holdout import MOST_HELD_BACK, held_back, share_held_back
from acsp_lightning.capture.samples import Samples
from acsp_lightning.settings import PruningSettings

# The standard error of an accuracy of 90 % from fewer samples exceeds four points.
LEAST_SAMPLES = 50


def share_to_hold_back(
    samples: int, scored: bool, settings: PruningSettings, *, anyway: bool = False
) -> tuple[float, str | None]:
    """The share of the validation samples to hold back from the capture, and a warning.

    Where cuts cannot be measured, nothing is held back, and the curve of the damage decides.

    Args:
        samples: number of validation samples of a process.
        scored: whether forward returns class scores.
        settings: what is asked for.
        anyway: measure cuts even where the settings decide without.

    Raises:
        ValueError: if a tolerance is asked for that cannot be measured.
    """
    selection, tolerance = settings.selection, settings.selection.tolerance
    if not selection.is_measured and not (anyway and selection.by_damage):
        return 0.0, None
    if not scored:
        found = "forward returns no class scores, so no accuracy can be measured"
        if tolerance is not None:
            raise ValueError(
                f"{found}, and selection.tolerance={tolerance} asks for one. Pass read_outputs=, a "
                "function of what forward returns that returns class scores (B, C), or set "
                "selection.flops instead."
            )
        advice = "pass read_outputs= to have them measured"
        return 0.0, f"Cuts cannot be measured: {found}. {_instead(settings, advice)}"
    share = share_held_back(samples, settings.measured_samples)
    held = int(held_back(0, samples, share).sum())
    needed = _needed(settings)
    if held >= needed:
        return share, None
    at_least = math.ceil(needed / MOST_HELD_BACK)
    limited, few = settings.measured_samples < needed, samples < at_least
    if tolerance is not None:
        advices = [f"raise measured_samples to {needed}"] * limited + ["validate on more"] * few
        advice = " and ".join(advices)
        raise ValueError(
            f"selection.tolerance={tolerance} needs {needed:,} samples to tell such a drop in accuracy "
            f"from noise, so {at_least:,} validation samples, of which half are held back; {held:,} of "
            f"{samples:,} would be. {advice.capitalize()}, allow a larger drop, or set selection.flops."
        )
    found, advice = (
        f"half of the {samples} validation samples",
        f"validate on at least {at_least} samples to have cuts measured",
    )
    if limited:
        found, advice = "measured_samples", f"raise it to {needed} or more to have cuts measured"
    return 0.0, (
        f"Cuts cannot be measured on {held} samples, {found}: an accuracy needs {LEAST_SAMPLES} or "
        f"more. {_instead(settings, advice)}"
    )


def enough_to_measure(
    held: Samples | None, settings: PruningSettings
) -> tuple[Samples | None, str | None]:
    """Samples to measure cuts on, None if they are too few, and a warning then.

    They are fewer than were held back where inputs are of several sizes: those of the first alone are
    joined.

    Args:
        held: the samples that were held back; None: there are none.
        settings: what is asked for.

    Raises:
        ValueError: if a tolerance is asked for that they cannot tell from noise.
    """
    count, needed = 0 if held is None else len(held[1]), _needed(settings)
    if count >= needed:
        return held, None
    found = f"{count:,} samples of one size are held back, and {needed:,} are needed"
    advice = "Bring the inputs to one size in the data or in read_batch"
    if settings.selection.tolerance is not None:
        raise ValueError(
            f"selection.tolerance={settings.selection.tolerance} cannot be measured: {found}. {advice}, "
            "validate on more samples, or set selection.flops instead."
        )
    return None, f"Cuts cannot be measured: {found}. {_instead(settings, advice.lower())}"


def _needed(settings: PruningSettings) -> int:
    tolerance = settings.selection.tolerance
    return LEAST_SAMPLES if tolerance is None else needed_for(tolerance)


def _instead(settings: PruningSettings, advice: str) -> str:
    """What is done where cuts cannot be measured, and what to do about it."""
    if settings.selection.is_measured:
        return f"The curve of the damage decides instead; {advice}, or set selection.curve='damage'."
    return f"The volume is decided as without them; {advice}."


def needed_for(tolerance: float) -> int:
    """Number of samples that tell a drop in accuracy from none.

    The difference between two networks of which one is right on a share ``tolerance`` more of S samples
    has a standard error of at least ``sqrt(tolerance (1 - tolerance) / S)``; it is to be at most half
    of the tolerance. A tolerance of 0 allows no measured loss, whatever its error.
    """
    if tolerance == 0:
        return LEAST_SAMPLES
    return max(LEAST_SAMPLES, math.ceil(4 * (1 - tolerance) / tolerance))
