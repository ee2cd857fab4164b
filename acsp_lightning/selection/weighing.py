"""What is known of each group of channels before widths are chosen: the long part of a decision.

Groups are independent of each other here, so several processes can share them out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import nn

from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import (
    ChannelCurves,
    SelectionConfig,
    WidthDecision,
    expected_seconds,
    trace_curves,
    width_of_share,
)
from acsp_lightning.progress import tracked
from acsp_lightning.selection.axis import timed_widths
from acsp_lightning.selection.damage import DamageCurve, OutputSize, candidate_widths, damage_curve
from acsp_lightning.selection.scores import ChannelScores, score_channels
from acsp_lightning.structure.groups import ChannelGroup

T = TypeVar("T")

LONG_WAIT = 30.0  # seconds that warrant a message

# Fewer classes are compared within seconds, and an estimate would take longer.
MANY_CLASSES = 200

# An exponential takes about as long as this many products of two channels.
PRODUCTS = 150


@dataclass(frozen=True, slots=True)
class Weighed:
    """One group of channels, weighed.

    Attributes:
        scores: of its channels.
        curves: of their clusterings.
        damage: from keeping fewer of them; None where the damage does not decide.
    """

    scores: ChannelScores
    curves: ChannelCurves
    damage: DamageCurve | None


class Spread(Protocol):
    """Does works, each in one of the processes, and gives the results to the one that decides."""

    def __call__(self, name: str, works: Sequence[Callable[[], T]], costs: Sequence[float]) -> list[T]:
        """Do works that are shown by a name, and that cost so much each."""


def in_turn(name: str, works: Sequence[Callable[[], T]], costs: Sequence[float]) -> list[T]:
    """The results of works, one after the other; a :class:`Spread` over one process."""
    return [work() for work in tracked(works, name)]


def weigh_groups(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    activations: Activations,
    config: SelectionConfig,
    *,
    sizes: Mapping[str, OutputSize] | None = None,
    round_to: int = 1,
    decisions: Mapping[str, WidthDecision] | None = None,
    spread: Spread = in_turn,
) -> dict[str, Weighed]:
    """Score, cluster and weigh the channels of every group; changes nothing.

    Args:
        model: the uncut network.
        groups: the groups to decide on.
        activations: captured activations of their layers.
        config: how to decide.
        sizes: of the outputs of consumers, by layer, which weight the errors in them; None: every output
            is weighted by its own energy.
        round_to: widths are multiples of this, in positions of a layer.
        decisions: widths of at least these groups, by name, if they are decided already.
        spread: does the works, one for each group.

    Returns:
        What was found, by group; nothing on a process that does not decide.

    Raises:
        ValueError: as :func:`acsp_lightning.selection.scores.score_channels`.
    """

    def work(group: ChannelGroup) -> Callable[[], Weighed]:
        decision = None if decisions is None else decisions[group.name]
        return lambda: weigh_group(
            model, group, activations, config, sizes=sizes, round_to=round_to, decision=decision
        )

    costs = [_cost(group, activations) for group in groups]
    found = spread("Weighing channels", [work(group) for group in groups], costs)
    return dict(zip((group.name for group in groups), found, strict=False))


def weigh_group(
    model: nn.Module,
    group: ChannelGroup,
    activations: Activations,
    config: SelectionConfig,
    *,
    sizes: Mapping[str, OutputSize] | None = None,
    round_to: int = 1,
    decision: WidthDecision | None = None,
) -> Weighed:
    """Score, cluster and weigh the channels of one group.

    Args:
        model: the uncut network.
        group: the group.
        activations: captured activations.
        config: how to decide.
        sizes: as in :func:`weigh_groups`.
        round_to: widths are multiples of this, in positions of a layer.
        decision: the width, if it is decided already.
    """
    step = group.step(round_to)
    if decision is None and config.keep is not None:
        decision = width_of_share(group.width, config, round_to=step)
    candidates = candidate_widths(group.width, config.min_channels, step)
    if config.latency is not None:
        candidates = timed_widths(group, config.min_channels, round_to)
    by_damage = decision is None and config.by_damage
    # A layer's own knee needs its whole curve.
    ks: list[int] | None = candidates if by_damage else None
    if decision is not None:
        ks = sorted({*candidates, decision.k} - {group.width})
    scores = score_channels(model, group, activations, config)
    weights = scores.contributions if config.weighting == "contribution" else None
    curves = trace_curves(scores.distances, weights, ks)
    damage = None
    if by_damage:
        damage = damage_curve(model, group, activations, curves, sizes or {}, candidates)
    return Weighed(scores, curves, damage)


def _cost(group: ChannelGroup, activations: Activations) -> float:
    """About how long a group takes, in any unit: that of comparing its channels."""
    values = sum(activations.outputs[side.layer].origin.numel() for side in group.producers)
    return float(values * (PRODUCTS + group.width))


def announce_wait(
    groups: Iterable[ChannelGroup],
    activations: Activations,
    config: SelectionConfig,
    processes: int,
    inform: Callable[[str], None],
) -> None:
    """Say how long :func:`weigh_groups` will take, if that is long.

    Args:
        groups: as there.
        activations: as there.
        config: as there.
        processes: number that share the works out.
        inform: called with the message.
    """
    wait = expected_wait(groups, activations, config) / processes
    if wait > LONG_WAIT:
        advice = "fewer" if config.class_pairs else "only N pairs of classes, drawn at random"
        inform(
            f"Comparing the channels of all layers will take about {wait:.0f} s; "
            f"selection.class_pairs=N compares {advice}."
        )


def expected_wait(
    groups: Iterable[ChannelGroup], activations: Activations, config: SelectionConfig
) -> float:
    """Estimate the seconds of comparing channels in :func:`weigh_groups`, by a short trial.

    0, without a trial, if there are too few classes for it to matter.
    """
    layers = {side.layer for group in groups for side in group.producers}
    if all(len(activations.outputs[layer].count) < MANY_CLASSES for layer in layers):
        return 0.0
    try:
        return sum(expected_seconds(activations.moments(layer), config.class_pairs) for layer in layers)
    except ValueError:
        return 0.0  # invalid moments are reported where the layer is known
