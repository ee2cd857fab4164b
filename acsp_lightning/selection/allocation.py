"""From captured activations to the channels of every group to keep."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from acsp_lightning.functional import (
    ChannelCurves,
    ChannelSelection,
    SelectionConfig,
    WidthDecision,
    WidthReason,
    select_channels,
    width_at_level,
    width_of_share,
)
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.selection.cost import FlopsModel
from acsp_lightning.selection.path import DamagePath, NetworkCurve
from acsp_lightning.selection.scores import ChannelScores, Comparison
from acsp_lightning.selection.time_target import TimeTarget
from acsp_lightning.selection.tradeoff import TradeOff
from acsp_lightning.selection.weighing import Weighed
from acsp_lightning.structure.groups import ChannelGroup

BISECTION_STEPS = 40


@dataclass(frozen=True, slots=True)
class Allocation:
    """The channels of every group to keep, and why.

    Attributes:
        selections: a selection for each group, by name.
        scores: channel scores that the selections are based on, by group name.
        comparison: what the distances between channels were computed from, in the worst case of all
            groups.
        network: damage curve of the whole network; None if every group was decided on its own.
        trade_off: what cuts of several depths were measured to cost; None if none was measured.
    """

    selections: Mapping[str, ChannelSelection]
    scores: Mapping[str, ChannelScores]
    comparison: Comparison
    network: NetworkCurve | None = None
    trade_off: TradeOff | None = None


Select = Callable[[Mapping[str, int]], Mapping[str, ChannelSelection]]
"""Selects the channels of every group from their numbers."""

Measure = Callable[[DamagePath, Select, Mapping[str, int] | None], TradeOff]
"""Measures cuts along a path in FLOPs, and one to the widths that meet a target in time, if any."""


def select_groups(
    groups: Sequence[ChannelGroup],
    weighed: Mapping[str, Weighed],
    config: SelectionConfig,
    *,
    layer_flops: Mapping[str, int],
    round_to: int = 1,
    budget: float | None = None,
    decisions: Mapping[str, WidthDecision] | None = None,
    deadline: TimeTarget | None = None,
    measure: Measure | None = None,
) -> Allocation:
    """Select the channels of every group to keep.

    Args:
        groups: the groups to decide on.
        weighed: what is known of each, by name, with the same configuration, rounding and decisions.
        config: how to decide; a FLOPs target needs a ``budget``, one in time a ``deadline``.
        layer_flops: FLOPs of every layer, as ``Complexity.by_layer``.
        round_to: every width is rounded up to a multiple of this, in positions of a layer.
        budget: maximum FLOPs of all layers after the cut; None: a knee decides.
        decisions: widths of at least these groups, by name, as from :func:`as_decisions`; None: decide
            here.
        deadline: times the network, and finds the widths that meet the target in time; None: there is
            none.
        measure: measures cuts along the path of least damage; None: its own curve decides.

    Returns:
        The selections, with the curve of the network where ``config.by_damage``.

    Raises:
        ValueError: if the budget or the target in time cannot be met even at the smallest widths.
    """
    scores = {group.name: weighed[group.name].scores for group in groups}
    curves = {group.name: weighed[group.name].curves for group in groups}
    steps = {group.name: group.step(round_to) for group in groups}
    widths: Mapping[str, WidthDecision] | None = decisions
    if decisions is None and config.keep is not None:
        widths = {g.name: width_of_share(g.width, config, round_to=steps[g.name]) for g in groups}

    def select(chosen: Mapping[str, WidthDecision]) -> dict[str, ChannelSelection]:
        return {
            name: select_channels(
                found.distances,
                # Layers of one width must not draw the same channels at random.
                replace(config, seed=config.seed + place),
                magnitudes=found.magnitudes,
                separability=found.separability,
                round_to=steps[name],
                curves=curves[name],
                k=chosen.get(name),
            )
            for place, (name, found) in enumerate(scores.items())
        }

    chosen: Mapping[str, WidthDecision] = {}
    network: NetworkCurve | None = None
    trade_off: TradeOff | None = None
    if widths is not None:
        chosen = widths
    elif config.by_damage:
        found = {group.name: weighed[group.name].damage for group in groups}
        damage = {name: curve for name, curve in found.items() if curve is not None}
        flops = FlopsModel(groups, layer_flops)
        path = DamagePath.of(damage, flops) if deadline is None else deadline.path(damage)
        in_flops = path if deadline is None else path.counted_in(flops)
        network = NetworkCurve.of(in_flops.stages)
        in_time = None if deadline is None else deadline.widths(path)
        if measure is not None:
            trade_off = measure(
                in_flops, lambda ks: select(as_decisions(ks, WidthReason.GIVEN)), in_time
            )
        chosen = decide_on_path(path, network, trade_off, config, budget, in_time)
    elif budget is not None:
        chosen = _one_level(curves, FlopsModel(groups, layer_flops), config, steps, budget)
    selections = select(chosen)
    comparisons = [found.comparison for found in scores.values()]
    nothing = Comparison(classes=0, unseen=0, class_pairs=0, sampling_error=0.0)
    worst = max(comparisons, key=lambda comparison: comparison.sampling_error, default=nothing)
    return Allocation(selections, scores, worst, network, trade_off)


def decide_on_path(
    path: DamagePath,
    network: NetworkCurve,
    trade_off: TradeOff | None,
    config: SelectionConfig,
    budget: float | None,
    in_time: Mapping[str, int] | None = None,
) -> dict[str, WidthDecision]:
    """Widths on a path: within a budget or a time and a tolerance, or at a knee.

    Args:
        path: the path of least damage.
        network: its curve.
        trade_off: measured cuts along it, with what ``config`` asks for; None: none was measured.
        config: what sets the volume.
        budget: maximum FLOPs of all layers; None: no FLOPs target.
        in_time: the widths that meet a target in time; None: there is none.

    Raises:
        ValueError: if the budget cannot be met, or nothing was measured that a tolerance needs.
    """
    if config.tolerance is not None and trade_off is None:
        raise ValueError(
            f"selection.tolerance={config.tolerance} needs cuts that were measured, and none was: no "
            "sample was held back in the capture that this cut is made from. Capture again, or set "
            "selection.flops instead."
        )
    reached = in_time if budget is None else path.within(budget)
    if budget is not None and reached is None:
        raise ValueError(_unreachable(config, budget, path.least))
    if trade_off is not None and trade_off.tolerated is not None:
        tolerated = trade_off.depths[trade_off.tolerated].widths
        if reached is None or path.costs.total(reached) < path.costs.total(tolerated):
            nothing = trade_off.tolerated == 0
            reason = WidthReason.NOTHING_TOLERATED if nothing else WidthReason.TOLERANCE
            return as_decisions(tolerated, reason)
    if reached is not None:
        timed = in_time is not None
        reason = WidthReason.LEAST_DAMAGE_IN_TIME if timed else WidthReason.LEAST_DAMAGE
        return as_decisions(reached, reason)
    if trade_off is not None and config.curve == "measured":
        if trade_off.knee is None:
            return as_decisions(path.stages[0].widths, WidthReason.NO_MEASURED_KNEE)
        return as_decisions(trade_off.depths[trade_off.knee].widths, WidthReason.MEASURED_KNEE)
    if network.knee is None:
        return as_decisions(path.stages[0].widths, WidthReason.NO_NETWORK_KNEE)
    return as_decisions(path.stages[network.knee].widths, WidthReason.NETWORK_KNEE)


def as_decisions(widths: Mapping[str, int], reason: WidthReason) -> dict[str, WidthDecision]:
    """Widths as decisions, all for one reason."""
    return {name: WidthDecision(k, None, reason) for name, k in widths.items()}


def _unreachable(config: SelectionConfig, budget: float, least: float) -> str:
    return (
        f"flops={config.flops} asks for at most {budget:.4g} FLOPs, but the layers that may be cut "
        f"leave {least:.4g} at their smallest. Raise flops, lower min_channels or round_to, "
        "include more layers, or set residual=True."
    )


def halved_widths(selections: Mapping[str, ChannelSelection], round_to: int) -> dict[str, int]:
    """Number of channels to keep in every group if half as many are removed; empty if none would be.

    Rounded up to multiples of ``round_to``, at most to the width of the group.
    """
    widths = {}
    for name, selection in selections.items():
        kept = selection.width - (selection.width - selection.k) // 2
        widths[name] = min(selection.width, -(-kept // round_to) * round_to)
    deeper = any(widths[name] < selection.width for name, selection in selections.items())
    return widths if deeper else {}


def flops_budget(config: SelectionConfig, initial: Complexity, current: Complexity) -> float | None:
    """Maximum FLOPs of the layers that meets ``config.flops``; None without such a target.

    The target is a share of the FLOPs of the ``initial`` network; FLOPs of the ``current`` one outside
    its layers are subtracted, since no cut changes them.
    """
    if config.flops is None:
        return None
    elsewhere = current.flops - sum(current.by_layer.values())
    return config.flops * initial.flops - elsewhere


def check_reachable(
    groups: Iterable[ChannelGroup],
    config: SelectionConfig,
    round_to: int,
    complexity: Complexity,
    budget: float | None,
) -> None:
    """Check, before any training, that the requested widths can be reached.

    Raises:
        ValueError: if a group has fewer channels than ``round_to``, or the layers need more than
            ``budget`` FLOPs even if every group is cut as far as it may be.
    """
    groups = tuple(groups)
    for group in groups:
        if group.step(round_to) > group.width:
            raise ValueError(
                f"round_to is {round_to}, but {group.name!r} has only {group.width} channels. Round to "
                "less, or exclude the layer."
            )
    steps = {group.name: group.step(round_to) for group in groups}
    smallest = {
        group.name: min(group.width, -(-config.min_channels // steps[group.name]) * steps[group.name])
        for group in groups
    }
    least = FlopsModel(groups, complexity.by_layer).total(smallest)
    if budget is not None and least > budget:
        raise ValueError(
            f"flops={config.flops} cannot be reached: cut as far as min_channels and round_to allow, "
            f"{least / complexity.flops:.3f} of the FLOPs are left. Raise flops, include more layers, "
            "or set residual=True."
        )


def _one_level(
    curves: Mapping[str, ChannelCurves],
    costs: FlopsModel,
    config: SelectionConfig,
    steps: Mapping[str, int],
    budget: float,
) -> dict[str, WidthDecision]:
    """The highest level of all curves, found by bisection, at which the FLOPs fit the budget."""

    def widths(level: float) -> dict[str, WidthDecision]:
        return {
            name: width_at_level(curve, level, config, round_to=steps[name])
            for name, curve in curves.items()
        }

    def flops(level: float) -> float:
        return costs.total({name: decision.k for name, decision in widths(level).items()})

    # Below and above every value of every curve: the smallest widths, and every channel.
    low, high = -1.0, 1.0 + 1e-9
    if flops(high) <= budget:
        return widths(high)
    if flops(low) > budget:
        raise ValueError(_unreachable(config, budget, flops(low)))
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if flops(middle) <= budget else (low, middle)
    return widths(low)
