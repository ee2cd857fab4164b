"""Greedy path from the full widths to the smallest: FLOPs and damage at every stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from acsp_lightning.functional import find_knee
from acsp_lightning.selection.cost import FlopsModel
from acsp_lightning.selection.damage import DamageCurve, lower_hull, total_damage


@dataclass(frozen=True, slots=True)
class Stage:
    """A point on the path from the full to the smallest widths.

    Attributes:
        widths: number of channels of every group.
        flops: FLOPs of all layers.
        damage: total damage, summed over the groups.
    """

    widths: Mapping[str, int]
    flops: float
    damage: float


@dataclass(frozen=True, slots=True)
class NetworkCurve:
    """The damage to the whole network against its FLOPs, along the greedy path.

    Attributes:
        flops: FLOPs of all layers at every stage, falling, (S,).
        damage: total damage at every stage, from 0, (S,).
        knee: the stage at the knee of ``1 - sqrt(damage / largest)`` over the FLOPs; None if there is
            none. The root makes it a share of amplitude: a network with redundant channels loses all of
            these and hardly more.
    """

    flops: tuple[float, ...]
    damage: tuple[float, ...]
    knee: int | None

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> "NetworkCurve":
        """The curve of a path."""
        flops, damage = [stage.flops for stage in stages], [stage.damage for stage in stages]
        # Kneedle needs a rising curve; a stage that saves no FLOPs is not a point of it.
        rising = [
            place
            for place in range(len(stages) - 1, -1, -1)
            if place == 0 or flops[place] < flops[place - 1]
        ]
        kept = torch.tensor([flops[place] for place in rising], dtype=torch.float64)
        lost = torch.tensor([damage[place] for place in rising], dtype=torch.float64)
        found = find_knee(kept, 1 - (lost / max(damage[-1], torch.finfo(lost.dtype).tiny)).sqrt())
        return cls(tuple(flops), tuple(damage), None if found is None else flops.index(found))


def greedy_path(curves: Mapping[str, DamageCurve], costs: FlopsModel) -> list[Stage]:
    """From full widths to the smallest, always taking the step of least damage per FLOP saved.

    Only widths on the convex hull of every curve are visited; the total damage at given FLOPs is then
    close to the least possible.
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
    stages: Sequence[Stage], curves: Mapping[str, DamageCurve], costs: FlopsModel, budget: float
) -> dict[str, int] | None:
    """The widths of least damage found within a budget of FLOPs; None if there are none."""
    stage = next((stage for stage in stages if stage.flops <= budget), None)
    if stage is None:
        return None
    widths, flops = dict(stage.widths), stage.flops
    while True:  # spend the FLOPs that the last step left over
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


@dataclass(frozen=True, slots=True)
class DamagePath:
    """The cuts of least damage, from the full widths to the smallest.

    Attributes:
        stages: the greedy path.
        curves: damage of every group.
        costs: FLOPs of the layers.
    """

    stages: Sequence[Stage]
    curves: Mapping[str, DamageCurve]
    costs: FlopsModel

    @classmethod
    def of(cls, curves: Mapping[str, DamageCurve], costs: FlopsModel) -> "DamagePath":
        """The path of some groups."""
        return cls(greedy_path(curves, costs), curves, costs)

    @property
    def full(self) -> float:
        """FLOPs of all layers at the full widths."""
        return self.stages[0].flops

    @property
    def least(self) -> float:
        """FLOPs of all layers at the smallest widths."""
        return self.stages[-1].flops

    def within(self, budget: float) -> dict[str, int] | None:
        """As :func:`widths_within`."""
        return widths_within(self.stages, self.curves, self.costs, budget)
