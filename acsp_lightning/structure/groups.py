"""Groups of channels that exist together, as plain data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Literal

from acsp_lightning.structure.sides import Side


@dataclass(frozen=True, slots=True)
class LayerSide:
    """The part that a group has in one side of one module.

    Attributes:
        layer: qualified module name.
        side: "out" or "in" of a layer, where those that pass channels through appear as "out"; or a
            parameter or a number of the module, see :mod:`acsp_lightning.structure.sides`.
        width: number of positions of the whole side (channels, features, entries).
        positions: the positions that belong to the group, ascending.
        channels: for every position the channel of the group, in 0..N-1, that it carries. A channel may
            have several: of a convolution in groups, or where it was concatenated twice.
        spread: of a consumer: how many positions in a row carry one map, more than 1 after a flatten.
    """

    layer: str
    side: Side
    width: int
    positions: tuple[int, ...]
    channels: tuple[int, ...]
    spread: int = 1


Norms = Literal["exact", "refit"]

REFIT = "norms='refit' cuts it too"


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer that uses statistics of all of its channels: a norm, or filters that are standardised.

    Attributes:
        layer: qualified module name.
        dim: dimension of the channels in what it is given.
    """

    layer: str
    dim: int


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """N channels that exist together: one that goes, goes from every side listed here.

    A channel is the smallest set of positions that can go alone.

    Attributes:
        name: name of the first layer, in order of execution, whose output these channels are; of several
            groups that one layer makes, the later ones have a number behind it.
        width: N.
        producers: sides ("out") of the layers whose filters make these channels, in order of execution.
        passthrough: sides of the layers that pass the channels on one by one, or in blocks that are
            channels, and of parameters and numbers.
        consumers: sides ("in") of the layers that mix the channels into others.
        residual: whether the channels run through a sum of several of the network's tensors.
        norms: layers of which statistics change with the channels: without some of them the network is
            the one in which these layers use the channels that stay.
    """

    name: str
    width: int
    producers: tuple[LayerSide, ...]
    passthrough: tuple[LayerSide, ...]
    consumers: tuple[LayerSide, ...]
    residual: bool
    norms: tuple[Norm, ...] = ()

    def step(self, round_to: int) -> int:
        """Number of channels that make a multiple of ``round_to`` positions of the first producer."""
        return round_to // gcd(round_to, len(self.producers[0].positions) // self.width)

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
        summed: layers whose channels run through residual sums, which are not offered.
        chosen: whether residual sums are offered because there is little else to cut, and not because
            they were asked for.
    """

    groups: tuple[ChannelGroup, ...]
    left_whole: Mapping[str, str]
    summed: tuple[str, ...] = ()
    chosen: bool = False

    @property
    def whole(self) -> dict[str, str]:
        """Why layers stay whole, also those for which nobody has asked."""
        return {**self.left_whole, **dict.fromkeys(self.summed, SUMMED)}

    @property
    def sums(self) -> str | None:
        """That residual sums were chosen, or what residual=True would add, as a sentence; else None."""
        if self.chosen and any(group.residual for group in self.groups):
            return STREAMS
        more = sum(reason == SUMMED for reason in self.whole.values())
        if not more:
            return None
        layers = "1 more layer writes" if more == 1 else f"{more} more layers write"
        pronouns = ("stays", "it") if more == 1 else ("stay", "them")
        return (
            f"{layers} into residual sums and {pronouns[0]} whole; residual=True cuts {pronouns[1]} too."
        )


SUMMED = "it writes into a residual sum; residual=True cuts it too"


STREAMS = (
    "Residual sums are cut too, since there is little to cut inside of residual blocks. Set "
    "residual=True to say so yourself, or residual=False to leave them whole."
)


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
