"""FLOPs of a network as a function of the widths of its groups."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from acsp_lightning.structure.groups import ChannelGroup


class CostModel(Protocol):
    """What a path saves: a cost of the layers as a function of the widths of groups."""

    def total(self, widths: Mapping[str, int]) -> float:
        """Cost of all layers; groups that are not listed have their full width."""

    def saved(self, widths: Mapping[str, int], group: str, k: int) -> float:
        """Cost saved if ``group`` keeps ``k`` channels, with all others at ``widths``."""


class FlopsModel:
    """FLOPs of the layers as a function of the widths of groups.

    Exact for layers whose cost is proportional to the channels on both sides, or on their output where
    they lose whole groups, as is that of every layer that can be cut. Never too small: others (a pooling
    layer) count at their full width.

    Args:
        groups: the groups whose widths vary.
        layer_flops: FLOPs of every layer at the full widths.
    """

    def __init__(self, groups: Iterable[ChannelGroup], layer_flops: Mapping[str, int]) -> None:
        self.groups = {group.name: group for group in groups}
        self._flops = layer_flops
        # By layer and side: the share of the channels that belongs to every group.
        self._shares: dict[str, dict[str, dict[str, float]]] = {}
        for group in self.groups.values():
            for side in group.sides:
                if side in group.passthrough and side.side != "out":
                    continue  # what whole groups read goes with what they make
                sides = self._shares.setdefault(side.layer, {})
                sides.setdefault(side.side, {})[group.name] = len(side.positions) / side.width
        self._layers = {
            name: {side.layer for side in group.sides} & layer_flops.keys()
            for name, group in self.groups.items()
        }

    def total(self, widths: Mapping[str, int]) -> float:
        """FLOPs of all layers; groups that are not listed have their full width."""
        return sum(self._of(layer, widths) for layer in self._flops)

    def saved(self, widths: Mapping[str, int], group: str, k: int) -> float:
        """FLOPs saved if ``group`` keeps ``k`` channels, with all others at ``widths``."""
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
