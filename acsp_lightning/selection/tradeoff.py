"""The trade-off between FLOPs and accuracy: what cuts of several depths were measured to cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from acsp_lightning.functional import find_knee
from acsp_lightning.measure.fidelity import Fidelity

# A knee is located to this ratio of FLOPs, and the depth at which a loss is reached to that one.
RESOLUTION = 1.1
CLOSE = 1.02

# Accuracy that a cut at the knee may lose. Where redundancy ends the accuracy falls slowly at first, and
# its own knee there moves with the noise: on a ResNet-56 between 1.5x and 1.9x fewer FLOPs.
KNEE_LOSS = 0.015

SIGNIFICANT = 2.0  # standard errors


@dataclass(frozen=True, slots=True)
class Depth:
    """A cut of some depth that was made on a copy and measured before any training.

    Attributes:
        flops: FLOPs of the network; what lies between its layers, such as pooling, counts as in the
            uncut one, at most a percent too much.
        parameters: its parameters.
        widths: number of channels of every group.
        fidelity: what is left of the uncut network, on samples that were held back from the capture.
        speedups: how many times as fast as the uncut network it is, by batch size; empty: not timed.
        seconds: predicted time of a pass, where a share of the time is asked for; else None.
    """

    flops: int
    parameters: int
    widths: Mapping[str, int]
    fidelity: Fidelity
    speedups: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TradeOff:
    """What cuts along the path of least damage cost, before any training.

    Attributes:
        depths: from the uncut network to the deepest cut.
        knee: index of the depth at the knee, see :func:`knee_of`; None if there is none.
        tolerated: index of the deepest one within the tolerance; None without a tolerance.
        whole: FLOPs that the targets are shares of: those of the network before its first cut.
        targets: index of the depth that meets a FLOPs target, by the share asked for.
        requested: the target that ``selection.flops`` sets; None if it is not set. The others were only
            to be shown.
        in_time: index of the depth that meets ``selection.latency``; None if it is not set.
    """

    depths: tuple[Depth, ...]
    knee: int | None
    tolerated: int | None
    whole: int
    targets: Mapping[str, int]
    requested: str | None = None
    in_time: int | None = None


def smoothed_drops(depths: Sequence[Depth]) -> list[float]:
    """Accuracy lost at every depth, without most of the noise of single depths.

    As long as half of the accuracy is left, the loss is fitted as rising and convex over the FLOPs
    saved, by least squares weighted with the standard errors. Below, where it levels off towards chance,
    it is only taken to rise.

    Args:
        depths: from the uncut network to the deepest cut.
    """
    rising = _rising_drops(depths)
    half = depths[0].fidelity.accuracy / 2
    upper = [depth for depth, drop in zip(depths, rising, strict=True) if drop <= half]
    convex = _convex_drops(upper) if len(upper) > 1 else [0.0]
    return [*convex, *(max(drop, convex[-1]) for drop in rising[len(convex) :])]


def _rising_drops(depths: Sequence[Depth]) -> list[float]:
    """Accuracy lost, as a deeper cut would never be better: isotonic regression."""
    # Imported here, as SciPy is: who only draws or loads should not wait for it.
    from sklearn.isotonic import isotonic_regression

    drops: list[float] = isotonic_regression([depth.fidelity.drop.mean for depth in depths]).tolist()
    return drops


def _convex_drops(depths: Sequence[Depth]) -> list[float]:
    """Accuracy lost as a convex function of the FLOPs saved that rises from 0."""
    from sklearn.linear_model import LinearRegression

    whole = depths[0].flops
    saved = torch.tensor([1 - depth.flops / whole for depth in depths], dtype=torch.float64)
    lost = torch.tensor([depth.fidelity.drop.mean for depth in depths], dtype=torch.float64)
    errors = torch.tensor([depth.fidelity.drop.error for depth in depths], dtype=torch.float64)
    # No drop is known to less than one sample.
    errors = errors.clamp(min=1 / depths[0].fidelity.samples)
    # Sums of hinges with coefficients of at least 0 are all such functions with corners at the depths.
    hinges = (saved[:, None] - saved[None, :-1]).clamp(min=0).numpy()
    fit = LinearRegression(fit_intercept=False, positive=True)
    fit.fit(hinges, lost.numpy(), sample_weight=errors.square().reciprocal().numpy())
    fitted: list[float] = fit.predict(hinges).tolist()
    return fitted


def knee_of(depths: Sequence[Depth]) -> int | None:
    """Index of the knee of a measured trade-off; None if there is none.

    By Kneedle, the knee of the class scores, ``1 - sqrt(score_error)`` over the FLOPs, or that of the
    accuracy, whichever cuts less: down to there the network goes on doing what it did, and there a
    network with redundant channels is cut. Any other has lost accuracy by then, and is cut to the
    deepest depth that has lost at most :data:`KNEE_LOSS`.

    There is none where no accuracy is lost at any depth.

    Args:
        depths: from the uncut network to the deepest cut.
    """
    errors = torch.tensor([depth.fidelity.score_error.mean for depth in depths], dtype=torch.float64)
    # By chance a deeper cut may be closer. An error of 1 is that of no scores at all; more is no worse.
    errors = errors.cummax(0).values.clamp(max=1)
    rising = _rising_drops(depths)
    knees = (_knee(depths, (1 - errors.sqrt()).tolist()), _knee(depths, [-drop for drop in rising]))
    if rising[-1] <= SIGNIFICANT * depths[-1].fidelity.drop.error:
        return None
    found = (knee for knee in knees if knee is not None)
    return min([deepest_within(depths, KNEE_LOSS), *found])


def deepest_within(depths: Sequence[Depth], tolerance: float) -> int:
    """Index of the deepest depth that costs at most a tolerance, by :func:`smoothed_drops`.

    Args:
        depths: from the uncut network, which costs nothing, to the deepest cut.
        tolerance: accuracy that may be lost; below 0 nothing is left to lose.
    """
    within = [place for place, drop in enumerate(smoothed_drops(depths)) if drop <= tolerance]
    return max(within, default=0)


def next_for_knee(depths: Sequence[Depth]) -> list[float]:
    """FLOPs at which to measure next, the best first, to find the knee closely; empty: it is found."""
    knee = knee_of(depths)
    if knee is None:
        return []
    if knee == deepest_within(depths, KNEE_LOSS):
        return next_for_tolerance(depths, KNEE_LOSS)
    return _middles(depths[max(0, knee - 1) : knee + 2])


def next_for_tolerance(depths: Sequence[Depth], tolerance: float) -> list[float]:
    """FLOPs at which to measure next, the best first, to meet a tolerance closely; empty: it is met."""
    here, drops = deepest_within(depths, tolerance), smoothed_drops(depths)
    around = depths[here : here + 2]
    if len(around) < 2:
        return []
    left, lost = max(0.0, tolerance - drops[here]), drops[here + 1] - drops[here]
    share = left / lost if lost > 0 else 0.0
    reached = around[0].flops + share * (around[1].flops - around[0].flops)
    reached = max(reached, CLOSE * around[1].flops)  # what lies closer to the deeper one is known
    # On a convex curve the line between two depths reaches a loss too early; hence the middle as well.
    return [reached] * (around[0].flops > CLOSE * reached) + _middles(around)


def _knee(depths: Sequence[Depth], heights: Sequence[float]) -> int | None:
    """Index of the knee of a curve over the FLOPs of the depths."""
    flops = torch.tensor([depth.flops for depth in reversed(depths)], dtype=torch.float64)
    found = find_knee(flops, torch.tensor(heights[::-1], dtype=torch.float64))
    return None if found is None else len(depths) - 1 - flops.tolist().index(found)


def _middles(depths: Sequence[Depth]) -> list[float]:
    """Middles of the gaps in FLOPs whose ratio exceeds :data:`RESOLUTION`, the largest first."""
    gaps = [
        (upper.flops / lower.flops, (upper.flops + lower.flops) / 2)
        for upper, lower in pairwise(depths)
        if upper.flops > RESOLUTION * lower.flops
    ]
    return [middle for _, middle in sorted(gaps, reverse=True)]
