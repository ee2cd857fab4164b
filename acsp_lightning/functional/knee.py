"""The knee of a curve over k, if there is one."""

import warnings
from typing import Literal

import numpy as np
from torch import Tensor

# With fewer points, Kneedle's sensitivity, one mean step in x, exceeds the bulge to be detected.
MIN_POINTS = 7

# Minimum rise of the curve, and minimum bulge over its chord as a share of that rise. Below it the
# curve is flat or straight, and a knee would be rounding noise.
MIN_BULGE = 1e-9


def find_knee(
    ks: Tensor,
    curve: Tensor,
    *,
    interpolation: Literal["interp1d", "polynomial"] = "interp1d",
    degree: int = 2,
) -> int | float | None:
    """Locate the knee of an increasing concave curve with Kneedle.

    Kneedle scales both axes to [0, 1] and takes the first clear maximum of curve minus diagonal.
    With a polynomial of degree 2 the result is a constant, whatever the data: for a concave
    parabola whose vertex lies at or beyond the end of the range, p(x) - x is largest at x = 1/2
    whatever its coefficients, so that about half of every layer is kept, or all of it if the bend
    is too small for Kneedle. Higher degrees tend to other constants (3: about 0.3). "interp1d" uses
    the curve itself.

    Args:
        ks: x values of the curve, such as numbers of clusters, ascending, shape (K,).
        curve: value at each k, finite, shape (K,).
        interpolation: "interp1d", or "polynomial" to fit a polynomial first.
        degree: degree of that polynomial; ignored by "interp1d".

    Returns:
        The knee, one of ``ks``; None if there is none: fewer than 7 points, a flat curve, a
        straight line, a curve below its chord from the first point on, or no maximum that Kneedle
        accepts.

    Raises:
        ValueError: if the two shapes differ or the curve is not finite.

    References:
        V. Satopaa et al., "Finding a 'kneedle' in a haystack", 2011.
    """
    if ks.ndim != 1 or ks.shape != curve.shape:
        raise ValueError(
            f"ks has shape {tuple(ks.shape)} and curve {tuple(curve.shape)}; both must be (K,)"
        )
    x = ks.detach().cpu().numpy()
    y = curve.detach().cpu().double().numpy()
    if not np.isfinite(y).all():
        raise ValueError("the curve has values that are not finite; a knee needs finite values")
    if len(x) < MIN_POINTS or np.ptp(y) < MIN_BULGE:
        return None
    chord = np.interp(x, x[[0, -1]], y[[0, -1]])
    if np.abs(y - chord).max() < MIN_BULGE * np.ptp(y):
        return None
    # Imported here, since it brings SciPy: who only draws or loads should not wait for that.
    from kneed import KneeLocator

    with warnings.catch_warnings():
        # Some releases of kneed warn if there is no knee; here that is a valid result.
        warnings.filterwarnings("ignore", message="No knee/elbow found")
        located = KneeLocator(
            x,
            y,
            curve="concave",
            direction="increasing",
            interp_method=interpolation,
            polynomial_degree=degree,
        )
    # For a curve below its chord, Kneedle returns an end point as the maximum. The first point is
    # on the chord by construction, so it is no knee.
    if located.knee is None or located.knee == x[0]:
        return None
    knee: int | float = located.knee.item()
    return knee
