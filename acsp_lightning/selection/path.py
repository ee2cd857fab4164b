"""Greedy path from the full widths to the smallest: cost and damage at every stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from acsp_lightning.functional import find_knee
from acsp_lightning.selection.cost import CostModel
from acsp_lightning.selection.damage import DamageCurve, lower_hull, total_damage

ROUNDING = 1e-6  # of what a group can save: less is no difference


@dataclass(frozen=True, slots=True)
class Stage:
    """A point on the path from the full to the smallest widths.

    Attributes:
        widths: number of channels of every group.
        cost: cost of all layers: FLOPs, or seconds.
        damage: total damage, summed over the groups, as their curves have it.
    """

    widths: Mapping[str, int]
    cost: float
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
        """The curve of a path whose costs are FLOPs."""
        flops, damage = [stage.cost for stage in stages], [stage.damage for stage in stages]
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


def cheaper_widths(curves: Mapping[str, DamageCurve], costs: CostModel) -> dict[str, DamageCurve]:
    """The curves without the widths that cost no less than a larger one of the same group.

    Hardware works through blocks of channels: what a part of one costs is as much as all of it.
    """
    cheaper = {}
    for name, curve in curves.items():
        saved = [costs.saved({}, name, k) for k in curve.ks]
        last, rounding = len(saved) - 1, ROUNDING * max(saved)
        kept = [p for p in range(last + 1) if p == last or saved[p] > max(saved[p + 1 :]) + rounding]
        cheaper[name] = DamageCurve(
            tuple(curve.ks[place] for place in kept), tuple(curve.damage[place] for place in kept)
        )
    return cheaper


def greedy_path(curves: Mapping[str, DamageCurve], costs: CostModel) -> list[Stage]:
    """From full widths to the smallest, always taking the step of least damage per cost saved.

    Only widths on the convex hull of every curve over the cost are visited; the total damage at a given
    cost is then close to the least possible.
    """
    ladders = {
        name: list(lower_hull(curve, [-costs.saved({}, name, k) for k in curve.ks]))
        for name, curve in curves.items()
    }
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
    stages: Sequence[Stage], curves: Mapping[str, DamageCurve], costs: CostModel, budget: float
) -> dict[str, int] | None:
    """The widths of least damage found within a budget of the cost; None if there are none."""
    stage = next((stage for stage in stages if stage.cost <= budget), None)
    if stage is None:
        return None
    widths, spent = dict(stage.widths), stage.cost
    while True:  # spend what the last step left over
        gains = []
        for name, curve in curves.items():
            here = curve.ks.index(widths[name])
            for above in range(here + 1, len(curve.ks)):
                cost = -costs.saved(widths, name, curve.ks[above])
                gain = curve.damage[here] - curve.damage[above]
                if spent + cost <= budget and gain > 0:
                    gains.append((gain / cost if cost > 0 else float("inf"), name, curve.ks[above]))
        if not gains:
            return widths
        _, name, k = max(gains)
        widths[name] = k
        spent = costs.total(widths)


@dataclass(frozen=True, slots=True)
class DamagePath:
    """The cuts of least damage, from the full widths to the smallest.

    Attributes:
        stages: the greedy path.
        curves: damage of every group.
        costs: cost of the layers.
    """

    stages: Sequence[Stage]
    curves: Mapping[str, DamageCurve]
    costs: CostModel

    @classmethod
    def of(cls, curves: Mapping[str, DamageCurve], costs: CostModel) -> "DamagePath":
        """The path of some groups."""
        return cls(greedy_path(curves, costs), curves, costs)

    @property
    def full(self) -> float:
        """Cost of all layers at the full widths."""
        return self.stages[0].cost

    @property
    def least(self) -> float:
        """Cost of all layers at the smallest widths."""
        return self.stages[-1].cost

    def within(self, budget: float) -> dict[str, int] | None:
        """As :func:`widths_within`."""
        return widths_within(self.stages, self.curves, self.costs, budget)

    def counted_in(self, costs: CostModel) -> "DamagePath":
        """The same stages with another cost of theirs."""
        stages = [replace(stage, cost=costs.total(stage.widths)) for stage in self.stages]
        return DamagePath(stages, self.curves, costs)
