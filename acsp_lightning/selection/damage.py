"""Damage to a network from keeping fewer channels of a group, computed before anything is cut."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import ChannelCurves
from acsp_lightning.functional.precision import alike, in_blocks
from acsp_lightning.functional.unexplained import (
    Unexplained,
    UnexplainedByMoments,
    UnexplainedByVectors,
    square_root,
)
from acsp_lightning.selection.scores import read_channels
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.targets import Target
from acsp_lightning.structure.weights import group_count, same_group, weight_by_input

# Number of widths of a group at which the damage is computed: finer steps gain next to nothing.
STEPS = 24


@dataclass(frozen=True, slots=True)
class DamageCurve:
    """Damage from keeping only the medoids of k clusters.

    Attributes:
        ks: numbers of channels, ascending, the last being all, (K,).
        damage: (K,), at least 0 and non-increasing, the last being 0: summed over the consumers of the
            group, the variance of the output that the kept channels cannot explain, as a share of the
            variance of the residual sum that the output is added to, or else of the output itself. The
            taps of a kernel count separately, as if their inputs were uncorrelated. After
            :func:`acsp_lightning.selection.sensitivity.with_sensitivity`, the expected change of the
            class scores, as a share of their variation.
    """

    ks: tuple[int, ...]
    damage: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class OutputSize:
    """What errors in the output of a consumer are measured by.

    Attributes:
        scale: what the BatchNorm that reads it, if one does, multiplies it by, (O,).
        power: its variance, together with what is added to it; 0: unknown.
    """

    scale: Tensor | None
    power: float


def output_sizes(targets: Mapping[str, Target]) -> dict[str, OutputSize]:
    """Sizes of the outputs of consumers, by layer, from what they gave before the cut."""
    return {layer: OutputSize(target.scale, target.power) for layer, target in targets.items()}


def damage_curve(
    model: nn.Module,
    group: ChannelGroup,
    activations: Activations,
    curves: ChannelCurves,
    sizes: Mapping[str, OutputSize],
    ks: Sequence[int],
) -> DamageCurve:
    """Compute the damage at some widths of one group, with all other channels kept.

    Args:
        model: the uncut network.
        group: the group.
        activations: captured activations.
        curves: the clusterings of the group's channels.
        sizes: of the outputs of consumers, by layer; without one, an output is weighted by its own
            energy.
        ks: numbers of channels, ascending, each one of those that ``curves`` were traced at.
    """
    known = curves.ks.tolist()
    kept = [curves.sweep.medoids[known.index(k)].cpu() for k in ks]
    # One reader after the other: of a wide layer each takes several matrices.
    damage = torch.zeros(len(kept), dtype=torch.float64)
    for side in group.consumers:
        reader = _Reader.of(model, side, activations, sizes.get(side.layer))
        damage += torch.tensor(reader.unexplained(kept), dtype=torch.float64)
    # Medoids of fewer clusters may by chance explain more; fewer channels are then the better choice.
    falling = torch.cat([damage, damage.new_zeros(1)]).cummin(0).values
    return DamageCurve((*ks, group.width), tuple(falling.tolist()))


def candidate_widths(width: int, at_least: int, round_to: int) -> list[int]:
    """Up to :data:`STEPS` widths below the full one, evenly spaced: multiples of ``round_to``."""
    smallest = -(-at_least // round_to) * round_to
    allowed = range(smallest, width, round_to)
    if len(allowed) <= STEPS:
        return list(allowed)
    return [allowed[place * (len(allowed) - 1) // (STEPS - 1)] for place in range(STEPS)]


@dataclass(frozen=True, slots=True)
class _Reader:
    """One consumer.

    Attributes:
        side: which of its input channels are those of the group.
        lost: what is lost of its output, scaled, if some of its D input channels go.
        power: of the output, that losses are a share of.
    """

    side: LayerSide
    lost: Unexplained
    power: float

    @classmethod
    def of(
        cls, model: nn.Module, side: LayerSide, activations: Activations, output: OutputSize | None
    ) -> "_Reader":
        module = model.get_submodule(side.layer)
        inputs = activations.inputs[side.layer]
        size = inputs.power.sqrt()
        weight = _reading(module, None if output is None else output.scale, size)
        inverse_size = torch.where(size > 0, size.reciprocal(), 0.0)[:, None]
        lost: Unexplained
        # A convolution in groups cannot take over from one to another.
        grouped = group_count(module) > 1
        if inputs.vectors is not None and not grouped:
            vectors = inputs.vectors * inverse_size * inputs.count**-0.5
            lost = UnexplainedByVectors.of(vectors, weight)
        else:
            moments = inputs.mean.mul_(inverse_size).mul_(inverse_size.T)
            if grouped:
                moments *= same_group(module, len(size)).to(size.device)
            lost = UnexplainedByMoments.of(moments, weight)
        power = 0.0 if output is None else output.power
        return cls(side, lost, power or max(0.0, lost.whole) or 1.0)

    def unexplained(self, choices: Sequence[Tensor]) -> list[float]:
        """Share of the output's power that is lost, for every choice of what remains of the group."""
        positions, channels = read_channels(self.side)
        losses = self.lost.losses(positions[~torch.isin(channels, kept)] for kept in choices)
        return [loss / self.power for loss in losses]


def _reading(module: nn.Module, scale: Tensor | None, size: Tensor) -> Tensor:
    """What reads every input channel, in units of their sizes: (D, M), M being at most D.

    Its product with its transpose is the weight of joint errors in two channels.

    Args:
        module: a convolution or a linear layer.
        scale: multiplies its outputs, (O,); None: 1.
        size: root mean square of the D input channels.
    """
    weight, channels = weight_by_input(module, scale), len(size)
    grouped = group_count(module) > 1
    if weight.numel() <= channels**2 and not grouped:
        return alike(weight, size).reshape(channels, -1) * size[:, None]
    products = size.new_zeros(channels, channels)
    for part in in_blocks(weight, dim=1):
        rows = alike(part, size).reshape(channels, -1) * size[:, None]
        products.addmm_(rows, rows.T)
    if grouped:
        products *= same_group(module, channels).to(size.device)
    return square_root(products)


def total_damage(curves: Mapping[str, DamageCurve], widths: Mapping[str, int]) -> float:
    """Sum of the damage over groups at given widths, each of which is on its curve."""
    return sum(curves[name].damage[curves[name].ks.index(k)] for name, k in widths.items())


def lower_hull(curve: DamageCurve, costs: Sequence[float]) -> Iterable[int]:
    """Indices of the points on the lower convex hull of damage over costs, ascending, with both ends.

    Args:
        curve: the damage.
        costs: what its widths cost, rising, (K,).
    """
    hull: list[int] = []
    for place in range(len(curve.ks)):
        while len(hull) >= 2 and _above(curve.damage, costs, hull[-2], hull[-1], place):
            hull.pop()
        hull.append(place)
    return hull


def _above(damage: Sequence[float], costs: Sequence[float], left: int, middle: int, right: int) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    run, rise = costs[right] - costs[left], damage[right] - damage[left]
    return (damage[middle] - damage[left]) * run >= rise * (costs[middle] - costs[left])
