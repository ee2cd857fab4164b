"""The decision on which channels of a network to keep; nothing is cut yet."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from acsp_lightning.capture.statistics import Activations, Captured
from acsp_lightning.functional import ChannelSelection
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.progress import warn_on_error
from acsp_lightning.selection.allocation import (
    Allocation,
    Select,
    flops_budget,
    select_groups,
)
from acsp_lightning.selection.exploration import explore
from acsp_lightning.selection.maps import GroupMap, map_groups
from acsp_lightning.selection.network_times import NetworkTimes
from acsp_lightning.selection.path import DamagePath, NetworkCurve
from acsp_lightning.selection.scores import Comparison
from acsp_lightning.selection.time_target import TimeTarget
from acsp_lightning.selection.tradeoff import Depth, TradeOff
from acsp_lightning.selection.trials import Trials
from acsp_lightning.selection.weighing import Weighed
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import PruningPlan, build_plan


@dataclass(frozen=True, slots=True)
class Proposal:
    """A cut that is decided but not made; plain data and tensors on the CPU.

    Attributes:
        groups: the groups that are cut.
        selections: the selection for each of these groups, by name.
        plan: the kept indices.
        before: complexity of the uncut network.
        comparison: what the distances between channels were computed from.
        network: damage to the whole network over its FLOPs, if it set the widths; else None.
        maps: data for the report on the groups that lose channels, by name.
        trade_off: what cuts of several depths were measured to cost; None if none was measured.
        times: of the network and its layers, where a share of its time was asked for; else None.
    """

    groups: tuple[ChannelGroup, ...]
    selections: Mapping[str, ChannelSelection]
    plan: PruningPlan
    before: Complexity
    comparison: Comparison
    network: NetworkCurve | None
    maps: Mapping[str, GroupMap]
    trade_off: TradeOff | None = None
    times: NetworkTimes | None = None


def propose(
    captured: Captured,
    weighed: Mapping[str, Weighed],
    settings: PruningSettings,
    before: Complexity,
    *,
    initial: Complexity | None = None,
    trials: Trials | None = None,
    deadline: TimeTarget | None = None,
    reference: float | None = None,
    shares: Sequence[float] = (),
    inform: Callable[[str], None] = lambda message: None,
) -> Proposal:
    """Decide which channels to keep; changes nothing.

    Args:
        captured: the captured groups and activations of the uncut network.
        weighed: what is known of each group, by name.
        settings: how to decide.
        before: complexity of the network.
        initial: the complexity that ``selection.flops`` is a share of; None: ``before``.
        trials: measures cuts on a copy; None: nothing is measured.
        deadline: times the network and finds the widths that meet ``selection.latency``; None where it
            is not set.
        reference: accuracy of the network before the first cut, which ``selection.tolerance`` counts
            from, on samples held back; None: this is the first cut.
        shares: shares of the FLOPs of the ``initial`` network at which a cut is measured as well.
        inform: called with a message if deciding will take long.

    Raises:
        ValueError: if the requested FLOPs, time or tolerance cannot be had.
    """
    selection = settings.selection

    def measure(path: DamagePath, select: Select, in_time: Mapping[str, int] | None) -> TradeOff:
        assert trials is not None
        uncut, tolerance = trials.uncut, selection.tolerance
        if tolerance is not None and trials.is_at_chance:
            found = uncut.fidelity
            raise ValueError(
                f"selection.tolerance={tolerance} bounds a loss of accuracy, but the network classifies "
                f"{found.accuracy:.1%} of {found.samples:,} samples rightly, which is chance: there is "
                "none to lose. Train it before it is cut, or set selection.flops; if it is trained, see "
                "that labels and class scores are those of the inputs."
            )
        if tolerance is not None and reference is not None:
            tolerance -= reference - uncut.fidelity.accuracy

        def timed(depth: Depth) -> Depth:
            return depth if deadline is None else replace(depth, seconds=deadline.seconds(depth.widths))

        return explore(
            path,
            timed(uncut),
            lambda widths: timed(trials.measure(select(widths))),
            tolerance=tolerance,
            whole=(initial or before).flops,
            shares=shares,
            requested=selection.flops,
            in_time=in_time,
            inform=inform,
        )

    allocation = select_groups(
        captured.groups,
        weighed,
        selection,
        layer_flops=before.by_layer,
        round_to=settings.round_to,
        budget=flops_budget(selection, initial or before, before),
        decisions=captured.decisions,
        deadline=deadline,
        measure=None if trials is None else measure,
    )
    groups = captured.groups[: settings.layers_per_epoch]
    selections = {group.name: allocation.selections[group.name] for group in groups}
    return Proposal(
        groups=groups,
        selections=selections,
        plan=build_plan(groups, {name: s.kept.tolist() for name, s in selections.items()}),
        before=before,
        comparison=allocation.comparison,
        network=allocation.network,
        maps=_maps(groups, allocation, captured.activations),
        trade_off=allocation.trade_off,
        times=None
        if deadline is None
        else deadline.times({name: selection.k for name, selection in selections.items()}),
    )


def _maps(
    groups: Iterable[ChannelGroup], allocation: Allocation, activations: Activations
) -> Mapping[str, GroupMap]:
    """Data for the report; empty if that fails, since no cut depends on its report."""
    maps = warn_on_error(
        lambda: map_groups(groups, allocation, activations),
        "The report of the cut could not be prepared",
        "Training goes on without it.",
    )
    return maps or {}
