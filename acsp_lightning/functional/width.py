"""How many channels of a layer to keep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from acsp_lightning.functional.clustering import (
    KMedoidsSweep,
    coverage,
    mean_simplified_silhouette,
    sweep_k_medoids,
)
from acsp_lightning.functional.config import SelectionConfig
from acsp_lightning.functional.knee import find_knee


class WidthReason(StrEnum):
    """Why a layer has the width it has."""

    KNEE = "knee of the curve"
    NO_KNEE = "no knee: every channel is kept"
    SHARE = "fixed share of the channels"
    NETWORK_KNEE = "knee of the network's damage against its FLOPs"
    NO_NETWORK_KNEE = "no knee of the network's damage: every channel is kept"
    MEASURED_KNEE = "knee of the measured trade-off"
    NO_MEASURED_KNEE = "no knee of the measured trade-off: every channel is kept"
    TOLERANCE = "deepest measured cut within the tolerance"
    NOTHING_TOLERATED = "no measured cut is within the tolerance: every channel is kept"
    LEAST_DAMAGE = "least damage that meets the FLOPs target"
    LEAST_DAMAGE_IN_TIME = "least damage that meets the latency target"
    LEVEL = "one level of all curves that meets the FLOPs target"
    GIVEN = "number of channels given by the caller"
    HALVED = "half the depth of a cut that did not recover"
    TOO_NARROW = "too narrow to cluster: every channel is kept"


@dataclass(frozen=True, slots=True)
class ChannelCurves:
    """Both curves of one layer over the same sweep, K values of k for N channels.

    Attributes:
        ks: numbers of clusters, int64, shape (K,), on the CPU.
        coverage: ``clustering.coverage``, shape (K,).
        mss: ``clustering.mean_simplified_silhouette``, shape (K,).
        sweep: the clusterings.
        weights: importance of the channels in the sweep, shape (N,).
    """

    ks: Tensor
    coverage: Tensor
    mss: Tensor
    sweep: KMedoidsSweep
    weights: Tensor


@dataclass(frozen=True, slots=True)
class WidthDecision:
    """How many channels to keep: ``k``, the ``knee`` it is based on, if any, and the ``reason``."""

    k: int
    knee: int | None
    reason: WidthReason


def trace_curves(
    distances: Tensor, weights: Tensor | None = None, ks: Sequence[int] | None = None
) -> ChannelCurves:
    """Sweep k once and compute both curves.

    Args:
        distances: distances between the channels, shape (N, N).
        weights: importance of the channels, shape (N,); None: all equal.
        ks: numbers of clusters to evaluate, each in 2..N-1; None: all of them.

    Returns:
        Curves over ``ks``, ascending, on the device of the distances.

    Raises:
        ValueError: as ``sweep_k_medoids``.
    """
    sweep = sweep_k_medoids(distances, weights, ks)
    used = torch.ones(len(distances)) if weights is None else weights
    return ChannelCurves(
        ks=sweep.ks,
        coverage=coverage(distances, sweep, weights),
        mss=mean_simplified_silhouette(distances, sweep),
        sweep=sweep,
        weights=used.to(device=distances.device, dtype=torch.float64),
    )


def decide_width(curves: ChannelCurves, config: SelectionConfig, *, round_to: int = 1) -> WidthDecision:
    """How many channels of one layer to keep: a fixed share, or the knee of the deciding curve.

    The damage to a network cannot be computed from one layer; for the curves "measured" and "damage"
    the coverage is used.

    Without a knee every channel is kept. The width is raised to ``config.min_channels`` and rounded up
    to a multiple of ``round_to``, but never above N.

    Args:
        curves: curves of the layer.
        config: ``keep``, ``curve``, ``interpolation``, ``degree`` and ``min_channels`` are used.
        round_to: in 1..N.

    Returns:
        The decision; ``knee`` is the knee found, before raising and rounding.

    Raises:
        ValueError: if ``config.flops`` or ``config.latency`` is set, since one layer cannot meet a
            target of the whole network, or ``round_to`` is out of range.
    """
    width = len(curves.weights)
    for target, share in (("flops", config.flops), ("latency", config.latency)):
        if share is not None:
            raise ValueError(
                f"{target}={share} is a target for the whole network and cannot be met from one "
                "layer; pass k, or use the callback, which decides for all layers together"
            )
    if config.keep is not None:
        return width_of_share(width, config, round_to=round_to)
    if width <= 2:
        return WidthDecision(_allowed(width, width, config, round_to), None, WidthReason.TOO_NARROW)
    knee = find_knee(
        curves.ks,
        _deciding(curves, config),
        interpolation=config.interpolation,
        degree=config.degree,
    )
    if knee is None:
        return WidthDecision(_allowed(width, width, config, round_to), None, WidthReason.NO_KNEE)
    return WidthDecision(_allowed(int(knee), width, config, round_to), int(knee), WidthReason.KNEE)


def width_of_share(width: int, config: SelectionConfig, *, round_to: int = 1) -> WidthDecision:
    """The fixed share of N channels in ``config.keep``, raised and rounded as in ``decide_width``.

    Args:
        width: N.
        config: ``keep``, which must be set, and ``min_channels`` are used.
        round_to: in 1..N.

    Raises:
        ValueError: if ``config.keep`` is not set or ``round_to`` is out of range.
    """
    if config.keep is None:
        raise ValueError("keep is None; set it to the share of the channels to keep, in (0, 1]")
    return WidthDecision(
        _allowed(round(config.keep * width), width, config, round_to), None, WidthReason.SHARE
    )


def width_at_level(
    curves: ChannelCurves, level: float, config: SelectionConfig, *, round_to: int = 1
) -> WidthDecision:
    """The fewest channels whose deciding curve reaches a level.

    Args:
        curves: curves of the layer.
        level: what the curve must reach; both curves lie in [0, 1].
        config: ``curve`` and ``min_channels`` are used.
        round_to: in 1..N.

    Returns:
        The smallest such k, N if there is none, raised and rounded as in ``decide_width``; ``knee`` is
        None.

    Raises:
        ValueError: if the level is not finite or ``round_to`` is out of range.
    """
    if not math.isfinite(level):
        raise ValueError(f"level is {level}; it must be finite, the curves lie in [0, 1]")
    width = len(curves.weights)
    reached = curves.ks[(_deciding(curves, config) >= level).cpu()]
    k = int(reached[0]) if len(reached) else width
    return WidthDecision(_allowed(k, width, config, round_to), None, WidthReason.LEVEL)


def _deciding(curves: ChannelCurves, config: SelectionConfig) -> Tensor:
    return curves.mss if config.curve == "mss" else curves.coverage


def _allowed(k: int, width: int, config: SelectionConfig, round_to: int) -> int:
    if not 1 <= round_to <= width:
        raise ValueError(
            f"round_to is {round_to} for a layer of {width} channels; it must be in 1..{width}: "
            "leave narrower layers out or round to less"
        )
    k = max(k, config.min_channels)
    return min(width, math.ceil(k / round_to) * round_to)
