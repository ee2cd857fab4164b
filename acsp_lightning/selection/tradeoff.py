"""The trade-off between FLOPs and accuracy: what cuts of several depths were measured to cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from acsp_lightning.functional import find_knee
from acsp_lightning.functional.knee import MIN_POINTS
from acsp_lightning.measure.fidelity import Fidelity

# A knee is located, and a tolerance met, to this ratio of FLOPs.
RESOLUTION = 1.1

SIGNIFICANT = 2.0  # standard errors


@dataclass(frozen=True, slots=True)
class Depth:
    """A cut of some depth that was made on a copy and measured before any training.

    Attributes:
        flops: FLOPs of the network.
        parameters: its parameters.
        widths: number of channels of every group.
        fidelity: what is left of the uncut network, on samples that were held back from the capture.
        speedups: how many times as fast as the uncut network it is, by batch size; empty: not timed.
    """

    flops: int
    parameters: int
    widths: Mapping[str, int]
    fidelity: Fidelity
    speedups: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TradeOff:
    """What cuts along the path of least damage cost, before any training.

    Attributes:
        depths: from the uncut network to the deepest cut.
        knee: index of the depth at the knee, see :func:`knee_of`; None if there is none.
        tolerated: index of the deepest one within the tolerance; None without a tolerance.
        targets: index of the depth that meets a FLOPs target, by the share asked for.
    """

    depths: tuple[Depth, ...]
    knee: int | None
    tolerated: int | None
    targets: Mapping[str, int]


def smoothed_drops(depths: Sequence[Depth]) -> list[float]:
    """Accuracy lost at every depth, as a deeper cut would never be better: isotonic regression.

    The noise of single depths would otherwise pass for knees, and for depths within a tolerance.

    Args:
        depths: from the uncut network to the deepest cut.
    """
    # Imported here, as SciPy is: who only draws or loads should not wait for it.
    from sklearn.isotonic import isotonic_regression

    drops: list[float] = isotonic_regression([depth.fidelity.drop.mean for depth in depths]).tolist()
    return drops


def knee_of(depths: Sequence[Depth]) -> int | None:
    """Index of the knee of a measured trade-off, by Kneedle; None if there is none.

    First the depth at which the network falls apart: the knee of its class scores,
    ``1 - sqrt(score_error)`` over the FLOPs, or that of its accuracy, whichever cuts less. A network
    with redundant channels has lost no accuracy there, by more than two standard errors, and that is its
    knee. Any other has: then the knee of the accuracy among the depths down to there decides, where the
    accuracy begins to fall.

    Args:
        depths: from the uncut network to the deepest cut.
    """
    first = _breakdown(depths)
    if first is None or not _loses(depths, first):
        return first
    return _accuracy_knee(depths[: first + 1])


def deepest_within(depths: Sequence[Depth], tolerance: float) -> int:
    """Index of the deepest depth that costs at most a tolerance, by :func:`smoothed_drops`.

    Args:
        depths: from the uncut network, which costs nothing, to the deepest cut.
        tolerance: accuracy that may be lost; below 0 nothing is left to lose.
    """
    within = [place for place, drop in enumerate(smoothed_drops(depths)) if drop <= tolerance]
    return max(within, default=0)


def next_for_knee(depths: Sequence[Depth]) -> float | None:
    """FLOPs of the depth to measure next, for the knee to be found more closely; None: it is found."""
    first = _breakdown(depths)
    if first is None:
        return None
    knee, deepest = first, len(depths) - 1
    if _loses(depths, first):
        if first + 1 < MIN_POINTS:  # too few for a knee of the accuracy
            return _middle_of_widest(depths[: first + 1])
        found = knee_of(depths)
        if found is None:
            return None
        knee, deepest = found, first
    return _middle_of_widest(depths[max(0, knee - 1) : min(knee + 1, deepest) + 1], RESOLUTION)


def next_for_tolerance(depths: Sequence[Depth], tolerance: float) -> float | None:
    """FLOPs of the depth to measure next, for the tolerance to be met more closely; None: it is met."""
    here = deepest_within(depths, tolerance)
    return _middle_of_widest(depths[here : here + 2], RESOLUTION)


def _breakdown(depths: Sequence[Depth]) -> int | None:
    """Index of the depth at which the network falls apart; None if there is none."""
    errors = torch.tensor([depth.fidelity.score_error.mean for depth in depths], dtype=torch.float64)
    # By chance a deeper cut may be closer. An error of 1 is that of no scores at all; more is no worse.
    errors = errors.cummax(0).values.clamp(max=1)
    knees = (_knee(depths, (1 - errors.sqrt()).tolist()), _accuracy_knee(depths))
    return min((knee for knee in knees if knee is not None), default=None)


def _accuracy_knee(depths: Sequence[Depth]) -> int | None:
    return _knee(depths, [-drop for drop in smoothed_drops(depths)])


def _loses(depths: Sequence[Depth], place: int) -> bool:
    """Whether accuracy is lost at a depth, beyond chance."""
    return smoothed_drops(depths)[place] > SIGNIFICANT * depths[place].fidelity.drop.error


def _knee(depths: Sequence[Depth], heights: Sequence[float]) -> int | None:
    """Index of the knee of a curve over the FLOPs of the depths."""
    flops = torch.tensor([depth.flops for depth in reversed(depths)], dtype=torch.float64)
    found = find_knee(flops, torch.tensor(heights[::-1], dtype=torch.float64))
    return None if found is None else len(depths) - 1 - flops.tolist().index(found)


def _middle_of_widest(depths: Sequence[Depth], ratio: float = 1.0) -> float | None:
    """Middle of the widest gap in FLOPs; None if none is wider than a ratio."""
    gaps = [
        (upper.flops - lower.flops, (upper.flops + lower.flops) / 2)
        for upper, lower in pairwise(depths)
        if upper.flops > ratio * lower.flops
    ]
    return max(gaps)[1] if gaps else None
