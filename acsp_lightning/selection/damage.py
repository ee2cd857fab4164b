"""Damage to a network from keeping fewer channels of a group, computed before anything is cut."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import RIDGE, ChannelCurves
from acsp_lightning.functional.precision import alike
from acsp_lightning.selection.scores import read_channels
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.refit import Target
from acsp_lightning.structure.weights import same_group, weight_by_input

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
            taps of a kernel count separately, as if their inputs were uncorrelated.
    """

    ks: tuple[int, ...]
    damage: tuple[float, ...]


def damage_curve(
    model: nn.Module,
    group: ChannelGroup,
    activations: Activations,
    curves: ChannelCurves,
    targets: Mapping[str, Target],
    ks: Sequence[int],
) -> DamageCurve:
    """Compute the damage at some widths of one group, with all other channels kept.

    Args:
        model: the uncut network.
        group: the group.
        activations: captured activations.
        curves: the clusterings of the group's channels.
        targets: outputs of consumers, by layer; without one, an output is weighted by its own energy.
        ks: numbers of channels, ascending, each one of those that ``curves`` were traced at.
    """
    readers = [_Reader.of(model, side, activations, targets.get(side.layer)) for side in group.consumers]
    damage = []
    known = curves.ks.tolist()
    for k in ks:
        kept = curves.sweep.medoids[known.index(k)].cpu()
        damage.append(sum(reader.unexplained(kept) for reader in readers))
    # Medoids of fewer clusters may by chance explain more; fewer channels are then the better choice.
    falling = torch.tensor([*damage, 0.0], dtype=torch.float64).cummin(0).values
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
    """One consumer, with its D input channels in units of their own sizes.

    ``precision`` is the inverse of their second moments, (D, D): its block of some channels is the
    inverse of their residual moments given the others. ``sensitivity``, (D, D), is the weight of joint
    errors in two channels.
    """

    precision: Tensor
    sensitivity: Tensor
    positions: Tensor
    channels: Tensor

    @classmethod
    def of(
        cls, model: nn.Module, side: LayerSide, activations: Activations, target: Target | None
    ) -> "_Reader":
        module = model.get_submodule(side.layer)
        moments = activations.inputs[side.layer].mean
        together = same_group(module, len(moments)).to(moments.device)
        moments = moments * together  # a convolution in groups cannot take over from one to another
        scale = None if target is None else target.scale
        weight = alike(weight_by_input(module, scale), moments)
        size = moments.diagonal().sqrt()
        by_channel = weight.reshape(len(moments), -1) * size[:, None]
        sensitivity = by_channel @ by_channel.T * together
        inverse_size = torch.where(size > 0, size.reciprocal(), 0.0)
        scaled = moments * inverse_size[:, None] * inverse_size
        power = 0.0 if target is None else target.power
        power = power or float((sensitivity * scaled).sum())
        positions, channels = read_channels(side)
        return cls(
            torch.linalg.inv(scaled + RIDGE * torch.eye(len(scaled)).to(scaled)),
            sensitivity / power if power > 0 else sensitivity,
            positions,
            channels,
        )

    def unexplained(self, kept: Tensor) -> float:
        """Share of the output's power that is lost if only ``kept`` remain of the group."""
        gone = self.positions[~torch.isin(self.channels, kept)].to(self.precision.device)
        block = self.precision[gone][:, gone]
        # The ridge is not part of the residual.
        residual = torch.linalg.inv(block) - RIDGE * torch.eye(len(gone)).to(block)
        return max(0.0, float((self.sensitivity[gone][:, gone] * residual).sum()))


def total_damage(curves: Mapping[str, DamageCurve], widths: Mapping[str, int]) -> float:
    """Sum of the damage over groups at given widths, each of which is on its curve."""
    return sum(curves[name].damage[curves[name].ks.index(k)] for name, k in widths.items())


def lower_hull(curve: DamageCurve) -> Iterable[int]:
    """Indices of the points of a curve on its lower convex hull, ascending, both ends included."""
    hull: list[int] = []
    for place in range(len(curve.ks)):
        while len(hull) >= 2 and _above(curve, hull[-2], hull[-1], place):
            hull.pop()
        hull.append(place)
    return hull


def _above(curve: DamageCurve, left: int, middle: int, right: int) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    run, rise = curve.ks[right] - curve.ks[left], curve.damage[right] - curve.damage[left]
    line = curve.damage[left] + rise * (curve.ks[middle] - curve.ks[left]) / run
    return curve.damage[middle] >= line
