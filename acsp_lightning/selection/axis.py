"""The widths at which a side of a layer is timed, and the channels that make them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from acsp_lightning.selection.damage import candidate_widths
from acsp_lightning.structure.groups import ChannelGroup, LayerSide

BLOCKS = (8, 16, 32)  # widths of which hardware works through a multiple at once
MOST_MULTIPLES = 16
SHARED_POINTS = 8  # of a side that several groups share


@dataclass(frozen=True, slots=True)
class Axis:
    """Widths of one side of a layer.

    Attributes:
        parts: the groups that have channels in this side, and their positions in it.
        points: numbers of channels of these groups, by name, in ascending order of positions; the last
            are all of them.
        counts: positions that are kept at every point.
    """

    parts: tuple[tuple[ChannelGroup, LayerSide], ...]
    points: tuple[Mapping[str, int], ...]
    counts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        parts: Iterable[tuple[ChannelGroup, LayerSide]],
        candidates: Mapping[str, Sequence[int]],
    ) -> "Axis":
        """The axis of a side: all candidates of a group or, of several, some of each at a time.

        Args:
            parts: the groups, each with its positions in the side.
            candidates: numbers of channels below all of them, ascending, by name of the group.
        """
        known = tuple(parts)
        ladders = {group.name: [*candidates.get(group.name, ()), group.width] for group, _ in known}
        steps = max(len(ladder) for ladder in ladders.values())
        if len(ladders) > 1:
            steps = min(steps, SHARED_POINTS)
        points = {}
        for place in range(steps):
            # From the full width down, which is there even if it is alone.
            ks = {
                name: ladder[-1 - place * (len(ladder) - 1) // max(1, steps - 1)]
                for name, ladder in ladders.items()
            }
            points[_count(known, ks)] = ks
        counts = tuple(sorted(points))
        return cls(known, tuple(points[count] for count in counts), counts)

    @property
    def width(self) -> int:
        """Positions of the whole side."""
        return self.parts[0][1].width

    def count(self, widths: Mapping[str, int]) -> int:
        """Positions that are kept; groups that are not listed keep all of theirs."""
        return _count(self.parts, widths)

    def kept(self, widths: Mapping[str, int]) -> tuple[int, ...]:
        """The positions of the first channels of every group."""
        gone = {
            position
            for group, side in self.parts
            for position, channel in zip(side.positions, side.channels, strict=True)
            if channel >= widths.get(group.name, group.width)
        }
        return tuple(p for p in range(self.width) if p not in gone)


def _count(parts: Iterable[tuple[ChannelGroup, LayerSide]], widths: Mapping[str, int]) -> int:
    known = tuple(parts)
    # Every channel of a group has as many positions.
    gone = sum(
        len(side.positions) // group.width * (group.width - widths.get(group.name, group.width))
        for group, side in known
    )
    return known[0][1].width - gone


def timed_widths(group: ChannelGroup, at_least: int, round_to: int) -> list[int]:
    """Candidate widths for a path in time: those for one in FLOPs, and multiples of blocks.

    Args:
        group: the group.
        at_least: the fewest channels it may keep.
        round_to: positions of its first layer that every width is a multiple of.

    Returns:
        Numbers of channels below the full one, ascending. Of 8, 16 and 32 positions the smallest that
        has at most :data:`MOST_MULTIPLES` multiples is taken.
    """
    step = group.step(round_to)
    strides = [math.lcm(step, group.step(block)) for block in BLOCKS]
    few = (stride for stride in strides if group.width <= (MOST_MULTIPLES + 1) * stride)
    stride = next(few, strides[-1])
    multiples = range(-(-at_least // stride) * stride, group.width, stride)
    return sorted({*candidate_widths(group.width, at_least, step), *multiples})
