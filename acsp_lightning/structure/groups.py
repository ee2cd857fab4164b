"""Groups of channels that exist together, as plain data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from acsp_lightning.structure.layers import (
    Side,
)


@dataclass(frozen=True, slots=True)
class LayerSide:
    """The part that a group has in one side of one layer.

    Attributes:
        layer: qualified module name.
        side: "out" or "in"; layers that pass channels through appear once, as "out".
        width: number of positions of the whole side (channels, or features of a linear layer).
        positions: the positions that belong to the group, ascending.
        channels: for every position the channel of the group, in 0..N-1, that it carries. After a
            flatten several consecutive positions carry one channel.
    """

    layer: str
    side: Side
    width: int
    positions: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """N channels that exist together: one that goes, goes from every side listed here.

    Attributes:
        name: name of the first layer, in order of execution, whose output these channels are.
        width: N.
        producers: sides ("out") of the layers whose filters make these channels and no others, in
            order of execution.
        passthrough: sides ("out") of the layers that pass the channels on one by one.
        consumers: sides ("in") of the layers that mix the channels into others.
        residual: whether the channels run through a sum of several of the network's tensors.
    """

    name: str
    width: int
    producers: tuple[LayerSide, ...]
    passthrough: tuple[LayerSide, ...]
    consumers: tuple[LayerSide, ...]
    residual: bool

    @property
    def sides(self) -> tuple[LayerSide, ...]:
        """All sides: producers, passthrough, consumers."""
        return self.producers + self.passthrough + self.consumers


@dataclass(frozen=True, slots=True)
class Tracing:
    """What a network offers for cutting.

    Attributes:
        groups: the groups that can be cut, in order of execution of their first layer.
        left_whole: name of every group that was asked for but cannot be cut, and the reason.
        summed: layers whose channels run through residual sums, for which nobody has asked.
    """

    groups: tuple[ChannelGroup, ...]
    left_whole: Mapping[str, str]
    summed: tuple[str, ...] = ()

    @property
    def whole(self) -> dict[str, str]:
        """Why layers stay whole, also those for which nobody has asked."""
        return {**self.left_whole, **dict.fromkeys(self.summed, SUMMED)}


SUMMED = "it writes into a residual sum; residual=True cuts it too"


def summed_note(whole: Mapping[str, str]) -> str | None:
    """What residual=True would add, as a sentence; None if that is nothing."""
    more = sum(reason == SUMMED for reason in whole.values())
    if not more:
        return None
    layers = "1 more layer writes" if more == 1 else f"{more} more layers write"
    pronouns = ("stays", "it") if more == 1 else ("stay", "them")
    return f"{layers} into residual sums and {pronouns[0]} whole; residual=True cuts {pronouns[1]} too."


def by_reason(whole: Mapping[str, str]) -> str:
    """Why layers stay whole, each reason once: those that differ in quoted names alone count as one."""
    alike: dict[str, list[str]] = {}
    for name, reason in whole.items():
        alike.setdefault(re.sub("'[^']*'", "''", reason), []).append(name)
    parts = []
    for names in alike.values():
        who = repr(names[0])
        if len(names) > 1:
            same = len({whole[name] for name in names}) == 1
            who = (
                f"{len(names)} layers ({names[0]!r} ... {names[-1]!r}){'' if same else ', of the first'}"
            )
        parts.append(f"{who}: {whole[names[0]]}")
    return "; ".join(parts)


def features_per_channel(side: LayerSide) -> int:
    """Consecutive positions per channel in the input of a consumer: 1, or more after a flatten."""
    runs = 1 + sum(a != b for a, b in pairwise(side.channels))
    return len(side.positions) // runs
