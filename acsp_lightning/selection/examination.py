"""What a network offers for cutting, before anything is captured."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import nn

from acsp_lightning.measure.complexity import Complexity, measure_complexity
from acsp_lightning.selection.allocation import check_reachable, flops_budget
from acsp_lightning.settings import PruningSettings
from acsp_lightning.structure.example import Example
from acsp_lightning.structure.groups import ChannelGroup, Tracing
from acsp_lightning.structure.verification import prunable_groups


@dataclass(frozen=True, slots=True)
class Examination:
    """What a network offers, and how large it is.

    Attributes:
        tracing: its groups of channels.
        complexity: of the network as it is.
    """

    tracing: Tracing
    complexity: Complexity


def trace(model: nn.Module, example: Example, settings: PruningSettings) -> Tracing:
    """The groups of channels that can be cut, verified one and all.

    Raises:
        ValueError: if a pattern matches no layer, or nothing can be cut.
    """
    return prunable_groups(
        model,
        example.traced,
        include=settings.include,
        exclude=settings.exclude,
        residual=settings.residual,
        norms=settings.norms,
    )


def examine(
    model: nn.Module, example: Example, settings: PruningSettings, initial: Complexity | None = None
) -> Examination:
    """Trace and count a network, and check that what the settings ask for can be had.

    Args:
        model: the network.
        example: arguments of its forward.
        settings: what is asked for.
        initial: the complexity that ``selection.flops`` is a share of; None: that of ``model``.

    Raises:
        ValueError: as :func:`trace`; or if a width or a FLOPs target cannot be reached.
    """
    tracing = trace(model, example, settings)
    complexity = measure_complexity(model, example.counted)
    budget = flops_budget(settings.selection, initial or complexity, complexity)
    check_reachable(tracing.groups, settings.selection, settings.round_to, complexity, budget)
    return Examination(tracing, complexity)


def groups_due(
    groups: Iterable[ChannelGroup], settings: PruningSettings, visited: Collection[str] = ()
) -> tuple[ChannelGroup, ...]:
    """The groups to capture for the next cut; what decides globally needs all that are left.

    Args:
        groups: all groups, in order of execution.
        settings: how many of them a cut takes.
        visited: names of those that were cut already; with ``layers_per_epoch`` they are passed over.
    """
    if settings.layers_per_epoch is None:
        return tuple(groups)
    left = tuple(group for group in groups if group.name not in visited)
    return left if settings.selection.is_global else left[: settings.layers_per_epoch]
