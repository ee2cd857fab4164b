"""How many FLOPs a network has at given widths, and how to spend them where they do the most."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from acsp_lightning.damage import DamageCurve, lower_hull, total_damage
from acsp_lightning.functional import find_knee
from acsp_lightning.structure.groups import ChannelGroup


class LayerCosts:
    """FLOPs of the layers as a function of the widths of groups.

    Exact for layers whose cost is proportional to the channels on both sides, which all that can be
    cut are. Never too small: others (a pooling layer) are counted as if they stayed whole.

    Args:
        groups: the groups whose widths vary.
        layer_flops: FLOPs of every layer at the full widths.
    """

    def __init__(self, groups: Iterable[ChannelGroup], layer_flops: Mapping[str, int]) -> None:
        self.groups = {group.name: group for group in groups}
        self._flops = layer_flops
        # By layer and side, the share of its channels that every group has.
        self._shares: dict[str, dict[str, dict[str, float]]] = {}
        for group in self.groups.values():
            for side in group.sides:
                sides = self._shares.setdefault(side.layer, {})
                sides.setdefault(side.side, {})[group.name] = len(side.positions) / side.width
        self._layers = {
            name: {side.layer for side in group.sides} & layer_flops.keys()
            for name, group in self.groups.items()
        }

    def total(self, widths: Mapping[str, int]) -> float:
        """FLOPs of all layers; groups that are not named have their full width."""
        return sum(self._of(layer, widths) for layer in self._flops)

    def saved(self, widths: Mapping[str, int], group: str, k: int) -> float:
        """FLOPs that go if, with all others at ``widths``, ``group`` keeps ``k`` channels."""
        after = {**widths, group: k}
        layers = self._layers[group]
        return sum(self._of(layer, widths) - self._of(layer, after) for layer in layers)

    def _of(self, layer: str, widths: Mapping[str, int]) -> float:
        flops = float(self._flops[layer])
        for shares in self._shares.get(layer, {}).values():
            flops *= 1 - sum(
                share * (1 - widths.get(name, self.groups[name].width) / self.groups[name].width)
                for name, share in shares.items()
            )
        return flops


@dataclass(frozen=True, slots=True)
class Stage:
    """A point on the way from the full to the smallest widths.

    Attributes:
        widths: channels of every group.
        flops: FLOPs of all layers.
        damage: sum over the groups.
    """

    widths: Mapping[str, int]
    flops: float
    damage: float


@dataclass(frozen=True, slots=True)
class NetworkCurve:
    """The damage to the whole network against its FLOPs, on the cheapest path.

    Attributes:
        flops: FLOPs of all layers at every stage, falling, (S,).
        damage: sum over the groups of what their consumers lose, from 0, (S,).
        knee: the stage at the knee of ``1 - sqrt(damage / largest)`` over the FLOPs; None where there
            is none. The root makes it a share of amplitude: of a network with channels to spare, all of
            them go and hardly more.
    """

    flops: tuple[float, ...]
    damage: tuple[float, ...]
    knee: int | None

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> "NetworkCurve":
        """The curve of a path."""
        flops, damage = [stage.flops for stage in stages], [stage.damage for stage in stages]
        # Kneedle wants a rising curve; a stage that saves no FLOPs is no point of it.
        rising = [
            place
            for place in range(len(stages) - 1, -1, -1)
            if place == 0 or flops[place] < flops[place - 1]
        ]
        kept = torch.tensor([flops[place] for place in rising], dtype=torch.float64)
        lost = torch.tensor([damage[place] for place in rising], dtype=torch.float64)
        found = find_knee(kept, 1 - (lost / max(damage[-1], torch.finfo(lost.dtype).tiny)).sqrt())
        return cls(tuple(flops), tuple(damage), None if found is None else flops.index(found))


def cheapest_path(curves: Mapping[str, DamageCurve], costs: LayerCosts) -> list[Stage]:
    """From full widths to the smallest, always taking the step of least damage per FLOP saved.

    Only widths on the convex hull of every curve are visited; the total damage as a function of the
    FLOPs is then close to the least possible.
    """
    ladders = {name: list(lower_hull(curve)) for name, curve in curves.items()}
    widths = {name: curve.ks[-1] for name, curve in curves.items()}
    stages = [Stage(dict(widths), costs.total(widths), 0.0)]
    while True:
        steps = []
        for name, ladder in ladders.items():
            if len(ladder) < 2:
                continue
            curve, here, below = curves[name], ladder[-1], ladder[-2]
            saved = costs.saved(widths, name, curve.ks[below])
            lost = curve.damage[below] - curve.damage[here]
            steps.append((lost / saved if saved > 0 else float("inf"), name))
        if not steps:
            return stages
        _, chosen = min(steps)
        ladders[chosen].pop()
        widths[chosen] = curves[chosen].ks[ladders[chosen][-1]]
        stages.append(Stage(dict(widths), costs.total(widths), total_damage(curves, widths)))


def widths_within(
    stages: Sequence[Stage], curves: Mapping[str, DamageCurve], costs: LayerCosts, budget: float
) -> dict[str, int] | None:
    """The widths of least damage found within a budget of FLOPs; None if there are none."""
    stage = next((stage for stage in stages if stage.flops <= budget), None)
    if stage is None:
        return None
    widths, flops = dict(stage.widths), stage.flops
    while True:  # spend what the last step left over
        gains = []
        for name, curve in curves.items():
            here = curve.ks.index(widths[name])
            for above in range(here + 1, len(curve.ks)):
                cost = -costs.saved(widths, name, curve.ks[above])
                gain = curve.damage[here] - curve.damage[above]
                if flops + cost <= budget and gain > 0:
                    gains.append((gain / cost if cost > 0 else float("inf"), name, curve.ks[above]))
        if not gains:
            return widths
        _, name, k = max(gains)
        widths[name] = k
        flops = costs.total(widths)
