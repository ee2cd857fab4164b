"""How many validation samples are held back from a capture, to measure cuts on."""

import math

from acsp_lightning.capture.holdout import MOST_HELD_BACK, share_held_back
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
        return 0.0, (
            f"Cuts cannot be measured: {found}. The curve of the damage decides instead; pass "
            "read_outputs= to have them measured, or set selection.curve='damage'."
        )
    share = share_held_back(samples, settings.measured_samples)
    held = int(samples * share + 1e-6)  # samples * (wanted / samples) may be a little less than wanted
    needed = LEAST_SAMPLES if tolerance is None else needed_for(tolerance)
    if held >= needed:
        return share, None
    at_least = math.ceil(needed / MOST_HELD_BACK)
    limited = settings.measured_samples < needed
    if tolerance is not None:
        advice = f"raise measured_samples to {needed}" if limited else "validate on more"
        raise ValueError(
            f"selection.tolerance={tolerance} needs {needed:,} samples to tell such a drop in accuracy "
            f"from noise, so {at_least:,} validation samples, of which half are held back; {held:,} of "
            f"{samples:,} would be. {advice.capitalize()}, allow a larger drop, or set selection.flops."
        )
    found, advice = (
        f"half of the {samples} validation samples",
        f"validate on at least {at_least} samples",
    )
    if limited:
        found, advice = "measured_samples", f"raise it to {needed} or more"
    return 0.0, (
        f"Cuts cannot be measured on {held} samples, {found}: an accuracy needs {LEAST_SAMPLES} or "
        f"more. The curve of the damage decides instead; {advice} to have cuts measured, or set "
        "selection.curve='damage'."
    )


def needed_for(tolerance: float) -> int:
    """Number of samples that tell a drop in accuracy from none.

    The difference between two networks of which one is right on a share ``tolerance`` more of S samples
    has a standard error of at least ``sqrt(tolerance (1 - tolerance) / S)``; it is to be at most half
    of the tolerance.
    """
    if tolerance == 0:
        return LEAST_SAMPLES
    return max(LEAST_SAMPLES, math.ceil(4 * (1 - tolerance) / tolerance))
