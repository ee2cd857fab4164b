"""What to keep, as plain data: it can be stored, compared, sent to other processes and replayed."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.sides import Side, parsed


@dataclass(frozen=True, slots=True)
class SideCut:
    """What one side of one layer keeps.

    Attributes:
        layer: qualified module name.
        side: "out" or "in" ("out" for layers that pass channels through), or that of a parameter or a
            number, see :mod:`acsp_lightning.structure.sides`.
        width: positions before the cut.
        kept: positions that stay, ascending, at least one.
    """

    layer: str
    side: Side
    width: int
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be a cut."""
        try:
            parsed(self.side)
        except ValueError as error:
            raise ValueError(f"side of {self.layer!r}: {error}") from error
        kept = self.kept
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= self.width:
            raise ValueError(
                f"{self.layer!r} ({self.side}) keeps {len(kept)} positions of {self.width}: they must "
                f"be at least one, ascending, unique and in 0..{self.width - 1}."
            )


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """The kept indices of every layer side that one cut changes.

    A plan needs no example input to be replayed: see :func:`acsp_lightning.apply_plan`.

    Attributes:
        cuts: one entry per layer side, group by group.
    """

    cuts: tuple[SideCut, ...] = ()

    def __post_init__(self) -> None:
        """Refuse two cuts of one side."""
        for (layer, side), times in Counter((cut.layer, cut.side) for cut in self.cuts).items():
            if times > 1:
                raise ValueError(f"the plan cuts {layer!r} ({side}) {times} times.")

    def __iter__(self) -> Iterator[SideCut]:
        return iter(self.cuts)

    def __len__(self) -> int:
        return len(self.cuts)

    def kept(self, layer: str, side: Side) -> tuple[int, ...] | None:
        """Positions that ``side`` of ``layer`` keeps; None if the plan does not touch it."""
        return next((c.kept for c in self.cuts if (c.layer, c.side) == (layer, side)), None)

    def filters(self, groups: Iterable[ChannelGroup]) -> dict[str, tuple[int, int]]:
        """Output channels before and after the cut of every layer that makes channels of groups."""
        return {
            side.layer: (side.width, len(self.kept(side.layer, "out") or range(side.width)))
            for group in groups
            for side in group.producers
        }

    def norms(self, groups: Iterable[ChannelGroup]) -> tuple[str, ...]:
        """Layers that use the statistics of fewer channels after the cut."""
        touched = {(cut.layer, cut.side != "out") for cut in self.cuts}
        layers, read = dict[str, None](), set[str]()
        for group in groups:
            layers.update(dict.fromkeys(norm.layer for norm in group.norms))
            read.update(side.layer for side in group.consumers)
        # Filters that are standardised use statistics of what they read, norms of what they give.
        return tuple(
            layer
            for layer in layers
            if (layer, True) in touched or (layer not in read and (layer, False) in touched)
        )

    def part(self, model: nn.Module, name: str) -> "PruningPlan":
        """The cuts of a submodule of ``model`` and of the modules in it, under their names in it."""
        modules = {cut.layer: model.get_submodule(cut.layer) for cut in self.cuts}
        names = {module: own for own, module in model.get_submodule(name).named_modules()}
        return PruningPlan(
            tuple(
                replace(cut, layer=names[modules[cut.layer]])
                for cut in self.cuts
                if modules[cut.layer] in names
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and integers, as JSON and ``weights_only`` checkpoints take them."""
        return {
            "cuts": [
                {"layer": c.layer, "side": c.side, "width": c.width, "kept": list(c.kept)}
                for c in self.cuts
            ]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PruningPlan":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: if ``data`` is no plan, or an entry cannot be a cut.
        """
        try:
            return cls(
                tuple(
                    SideCut(c["layer"], c["side"], int(c["width"]), tuple(map(int, c["kept"])))
                    for c in data["cuts"]
                )
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                "this is no pruning plan: it needs 'cuts', a list of entries with 'layer', 'side', "
                f"'width' and 'kept' ({type(error).__name__}: {error})."
            ) from error


def build_plan(groups: Sequence[ChannelGroup], kept: Mapping[str, Sequence[int]]) -> PruningPlan:
    """Translate kept channels of groups into kept positions of layer sides.

    Args:
        groups: groups of one network; several may share a consumer (concatenation).
        kept: for every group to cut, by name, the channels that stay, each in 0..N-1. Groups that are
            not named, and groups that keep everything, are left as they are.

    Raises:
        ValueError: if a name is no group of ``groups``, or nothing would be left of a group.
    """
    known = {group.name: group for group in groups}
    dropped: dict[tuple[str, Side], set[int]] = {}
    widths: dict[tuple[str, Side], int] = {}
    for name in kept:
        if name not in known:
            raise ValueError(f"no group is named {name!r}; there are {sorted(known)}.")
    for name in (name for name in known if name in kept):
        stay = set(kept[name])
        if not stay or not stay.issubset(range(known[name].width)):
            raise ValueError(
                f"{name!r} has channels 0..{known[name].width - 1}; asked to keep {sorted(stay)}."
            )
        for side in known[name].sides:
            gone = [p for p, c in zip(side.positions, side.channels, strict=True) if c not in stay]
            if gone:
                dropped.setdefault((side.layer, side.side), set()).update(gone)
                widths[side.layer, side.side] = side.width
    return PruningPlan(
        tuple(
            SideCut(
                layer,
                side,
                widths[layer, side],
                tuple([p for p in range(widths[layer, side]) if p not in gone]),
            )
            for (layer, side), gone in dropped.items()
        )
    )
