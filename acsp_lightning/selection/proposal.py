"""What stays of a network, decided from what was captured of it; nothing is cut yet."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from acsp_lightning.capture.statistics import Activations, Captured
from acsp_lightning.functional import ChannelSelection
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.progress import warn_on_error
from acsp_lightning.selection.allocation import Allocation, expected_wait, flops_budget, select_groups
from acsp_lightning.selection.maps import GroupMap, map_groups
from acsp_lightning.selection.path import NetworkCurve
from acsp_lightning.selection.scores import Comparison
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import PruningPlan, build_plan
from acsp_lightning.structure.refit import Refit

LONG_WAIT = 30.0  # seconds after which users begin to wonder


@dataclass(frozen=True, slots=True)
class Proposal:
    """A cut that is decided and yet to be made; plain data and tensors on the CPU.

    Attributes:
        groups: the groups that are cut.
        selections: the selection for each of these groups, by name.
        plan: the kept indices.
        before: complexity of the network as it is.
        comparison: what the distances between channels rest on.
        network: damage to the whole network over its FLOPs, where it decided; else None.
        maps: what the report shows of the groups that lose channels, by name.
    """

    groups: tuple[ChannelGroup, ...]
    selections: Mapping[str, ChannelSelection]
    plan: PruningPlan
    before: Complexity
    comparison: Comparison
    network: NetworkCurve | None
    maps: Mapping[str, GroupMap]


def propose(
    model: nn.Module,
    captured: Captured,
    settings: PruningSettings,
    before: Complexity,
    *,
    outputs: Refit | None = None,
    initial: Complexity | None = None,
    inform: Callable[[str], None] = lambda message: None,
) -> Proposal:
    """Decide what stays; changes nothing.

    Args:
        model: the uncut network.
        captured: what was captured of it.
        settings: how to decide.
        before: complexity of ``model``.
        outputs: what consumers give now, which says how much an error in them matters; None: every
            output counts by its own energy.
        initial: the complexity that ``selection.flops`` is a share of; None: ``before``.
        inform: gets a message where deciding will take long.

    Raises:
        ValueError: if classes are missing, or the volume asked for cannot be had.
    """
    selection = settings.selection
    wait = expected_wait(captured.groups, captured.activations, selection)
    if wait > LONG_WAIT:
        advice = "fewer" if selection.class_pairs else "only N pairs of classes, drawn at random"
        inform(
            f"Comparing the channels of all layers will take about {wait:.0f} s; "
            f"selection.class_pairs=N compares {advice}."
        )
    allocation = select_groups(
        model,
        captured.groups,
        captured.activations,
        selection,
        layer_flops=before.by_layer,
        targets=None if outputs is None else outputs.targets,
        round_to=settings.round_to,
        budget=flops_budget(selection, initial or before, before),
        decisions=captured.decisions,
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
    )


def _maps(
    groups: Iterable[ChannelGroup], allocation: Allocation, activations: Activations
) -> Mapping[str, GroupMap]:
    """Empty where that fails: no cut depends on what its report shows."""
    maps = warn_on_error(
        lambda: map_groups(groups, allocation, activations),
        "The report of the cut could not be prepared",
        "Training goes on without it.",
    )
    return maps or {}
