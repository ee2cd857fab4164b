"""From captured activations to the channels of every group that stay."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from acsp_lightning.capture import Activations
from acsp_lightning.complexity import Complexity
from acsp_lightning.functional import (
    ChannelCurves,
    ChannelSelection,
    SelectionConfig,
    WidthDecision,
    WidthReason,
    mean_separability,
    select_channels,
    separation_distances,
    trace_curves,
    width_at_level,
)
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.layers import side_layout
from acsp_lightning.structure.plan import PruningPlan, build_plan

BISECTION_STEPS = 40


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for and against the N channels of one group.

    Attributes:
        distances: distances between the channels' separability vectors, (N, N), over the outputs of
            all layers that make the channels.
        contributions: (N,), mean 1 (all ones if nothing is contributed): root mean square of the
            channel where it is read, times the norm of the weights that read it.
        magnitudes: (N,), L1 norm of the filters that make the channel.
        separability: (N,), mean JM distance over classes and positions, in [0, 2].
    """

    distances: Tensor
    contributions: Tensor
    magnitudes: Tensor
    separability: Tensor


def gather_evidence(model: nn.Module, group: ChannelGroup, activations: Activations) -> Evidence:
    """Collect the evidence for one group from a capture on the uncut ``model``.

    Raises:
        ValueError: if classes are missing or seen too rarely; names the layer.
    """
    squares: list[Tensor] = []
    separability: list[Tensor] = []
    magnitudes: list[Tensor] = []
    for side in group.producers:
        order = torch.tensor(side.channels).argsort()
        moments = activations.moments[side.layer]
        order = order.to(moments.mean.device)
        try:
            distances = separation_distances(moments)
            separability.append(mean_separability(moments)[order])
        except ValueError as error:
            raise ValueError(f"Layer {side.layer!r}: {error}") from error
        squares.append(distances[order][:, order].square())
        magnitudes.append(_filter_norms(model, side).to(order.device)[order])
    contributions = torch.stack(
        [_contributions(model, side, group.width, activations) for side in group.consumers]
    )
    total = contributions.square().sum(0).sqrt()
    mean = total.mean()
    return Evidence(
        distances=torch.stack(squares).sum(0).sqrt(),
        contributions=total / mean if mean > 0 else torch.ones_like(total),
        magnitudes=torch.stack(magnitudes).sum(0),
        separability=torch.stack(separability).mean(0),
    )


def select_groups(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    activations: Activations,
    config: SelectionConfig,
    *,
    round_to: int = 1,
    layer_flops: Mapping[str, int],
    budget: float | None = None,
    widths: Mapping[str, int] | None = None,
) -> dict[str, ChannelSelection]:
    """Select the channels of every group that stay.

    Args:
        model: the uncut network.
        groups: the groups to decide on.
        activations: what was captured for them.
        config: how to decide; a FLOPs target needs a ``budget``.
        round_to: every width is raised to a multiple of this.
        layer_flops: FLOPs of every layer, as ``Complexity.by_layer``; read for a ``budget`` only.
        budget: FLOPs that all layers together may have after the cut: one level, shared by all
            curves, is lowered until they fit; None: each group decides for itself.
        widths: channels to keep of every group, by name, from :func:`halved_widths`; None: decide.

    Returns:
        A selection for each group, by name.

    Raises:
        ValueError: if the budget cannot be met even at the smallest widths, or as
            :func:`gather_evidence`.
    """
    evidence = {group.name: gather_evidence(model, group, activations) for group in groups}
    weighted = config.weighting == "contribution"
    curves = {
        name: trace_curves(found.distances, found.contributions if weighted else None)
        for name, found in evidence.items()
    }
    decisions: dict[str, WidthDecision] = {}
    if widths is not None:
        decisions = {name: WidthDecision(k, None, WidthReason.HALVED) for name, k in widths.items()}
    elif budget is not None:
        decisions = _meet_budget(groups, curves, config, round_to, layer_flops, budget)
    return {
        name: select_channels(
            found.distances,
            # Layers of one width must not draw the same channels at random.
            replace(config, seed=config.seed + place),
            magnitudes=found.magnitudes,
            separability=found.separability,
            round_to=round_to,
            curves=curves[name],
            k=decisions.get(name),
        )
        for place, (name, found) in enumerate(evidence.items())
    }


def halved_widths(selections: Mapping[str, ChannelSelection], round_to: int) -> dict[str, int]:
    """Channels to keep of every group if half as many are removed; empty if that would be none.

    Raised to multiples of ``round_to``, or to the width of the group.
    """
    widths = {}
    for name, selection in selections.items():
        kept = selection.width - (selection.width - selection.k) // 2
        widths[name] = min(selection.width, -(-kept // round_to) * round_to)
    deeper = any(widths[name] < selection.width for name, selection in selections.items())
    return widths if deeper else {}


def flops_budget(config: SelectionConfig, initial: Complexity, current: Complexity) -> float | None:
    """FLOPs that the layers may have to meet ``config.flops``; None if there is no such target.

    The target is a share of the FLOPs of the ``initial`` network; what no layer of the ``current``
    one accounts for is taken off, since no cut changes it.
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
    """Check before any training that the widths that are asked for can be had.

    Raises:
        ValueError: if a group has fewer channels than ``round_to``, or the layers need more than
            ``budget`` FLOPs even if every group is cut as far as it may be.
    """
    groups = tuple(groups)
    for group in groups:
        if round_to > group.width:
            raise ValueError(
                f"round_to is {round_to}, but {group.name!r} has only {group.width} channels. Round to "
                "less, or exclude the layer."
            )
    floor = -(-config.min_channels // round_to) * round_to
    smallest = {group.name: min(group.width, floor) for group in groups}
    least = _flops_after(groups, smallest, complexity.by_layer)
    if budget is not None and least > budget:
        raise ValueError(
            f"flops={config.flops} cannot be reached: cut as far as min_channels and round_to allow, "
            f"{least / complexity.flops:.3f} of the FLOPs are left. Raise flops, include more layers, "
            "or set residual=True."
        )


def _meet_budget(
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, ChannelCurves],
    config: SelectionConfig,
    round_to: int,
    layer_flops: Mapping[str, int],
    budget: float,
) -> dict[str, WidthDecision]:
    def widths(level: float) -> dict[str, WidthDecision]:
        return {
            name: width_at_level(curve, level, config, round_to=round_to)
            for name, curve in curves.items()
        }

    def flops(level: float) -> float:
        return _flops_after(groups, {n: d.k for n, d in widths(level).items()}, layer_flops)

    # Below and above every value of every curve: the smallest widths, and every channel.
    low, high = -1.0, 1.0 + 1e-9
    if flops(high) <= budget:
        return widths(high)
    if flops(low) > budget:
        raise ValueError(
            f"flops={config.flops} asks for at most {budget:.4g} FLOPs, but the layers that may be cut "
            f"leave {flops(low):.4g} at their smallest. Raise flops, lower min_channels or round_to, "
            "include more layers, or set residual=True."
        )
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if flops(middle) <= budget else (low, middle)
    return widths(low)


def _flops_after(
    groups: Iterable[ChannelGroup], widths: Mapping[str, int], layer_flops: Mapping[str, int]
) -> float:
    plan: PruningPlan = build_plan(tuple(groups), {n: range(k) for n, k in widths.items()})
    shares = plan.layer_shares()
    return sum(flops * shares.get(layer, 1.0) for layer, flops in layer_flops.items())


def _filter_norms(model: nn.Module, side: LayerSide) -> Tensor:
    module = model.get_submodule(side.layer)
    ((_, dim), *_) = side_layout(module, "out").tensors
    weight = module.get_parameter("weight").detach().double()
    return weight.abs().movedim(dim, 0).flatten(1).sum(1)


def _contributions(model: nn.Module, side: LayerSide, width: int, activations: Activations) -> Tensor:
    """What each channel of a group contributes through one consumer, (N,)."""
    module = model.get_submodule(side.layer)
    ((_, dim),) = side_layout(module, "in").tensors
    energy = activations.inputs[side.layer].mean.diagonal()
    weight = module.get_parameter("weight").detach().to(energy)
    norms = weight.movedim(dim, 0).reshape(len(energy), -1).square().sum(1)
    spread = side.width // len(energy)
    positions = torch.tensor(side.positions, device=energy.device)[::spread] // spread
    channels = torch.tensor(side.channels, device=energy.device)[::spread]
    power = (energy * norms)[positions]
    return (
        torch.zeros(width, dtype=power.dtype, device=power.device).index_add_(0, channels, power).sqrt()
    )
