"""From marks to groups: channels that lie on the same sides are chosen from together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from acsp_lightning.structure.channels import Channels, Classes
from acsp_lightning.structure.flow import Findings, Touch
from acsp_lightning.structure.following import IS_OUTPUT
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.layers import is_producer
from acsp_lightning.structure.sides import Side, parameter_side, size_side

# A consumer may read a channel this often, but not at every position of a map.
MOST_READ = 4

Place = tuple[str, Side]


@dataclass(frozen=True, slots=True)
class Bundle:
    """Channels that lie on the same sides, or why they must stay.

    Attributes:
        layers: convolutions and linear layers that make the channels or pass them on, in order of
            execution.
        residual: whether the channels run through a sum.
        group: the group; None if it must stay.
        reason: why it must stay; None if it may go, or if nobody would ask for it (a classifier).
    """

    layers: tuple[str, ...]
    residual: bool
    group: ChannelGroup | None
    reason: str | None


def bundles(found: Findings, model: nn.Module, order: Sequence[str]) -> list[Bundle]:
    """All channels of a network, in order of execution of their first layer.

    Args:
        found: what a forward pass showed.
        model: the network.
        order: names of its layers in order of execution.
    """
    places = _places(found, model)
    classes = found.channels.classes()
    lying: dict[int, dict[Place, list[int]]] = {}
    for place, marks in places.items():
        for position, root in enumerate(classes.of(marks).tolist()):
            if marks[position] > 0:
                lying.setdefault(root, {}).setdefault(place, []).append(position)
    alike: dict[object, list[int]] = {}
    for root, where in lying.items():
        alike.setdefault((_signature(where), classes.reason(root)), []).append(root)
    found_bundles = [
        _bundle(roots, [lying[root] for root in roots], found, places, classes, model, order)
        for roots in alike.values()
    ]
    ranks = {name: rank for rank, name in enumerate(order)}
    return sorted(
        (bundle for bundle in found_bundles if bundle.layers),
        key=lambda bundle: ranks[bundle.layers[0]],
    )


def _signature(where: Mapping[Place, Sequence[int]]) -> object:
    return tuple(sorted((place, len(positions)) for place, positions in where.items()))


def _bundle(
    roots: Sequence[int],
    lying: Sequence[Mapping[Place, Sequence[int]]],
    found: Findings,
    places: Mapping[Place, Tensor],
    classes: Classes,
    model: nn.Module,
    order: Sequence[str],
) -> Bundle:
    ranks = {name: rank for rank, name in enumerate(order)}
    where = sorted(lying[0], key=lambda place: (ranks.get(place[0], len(ranks)), place[1]))
    layers = tuple(
        layer for layer, side in where if side == "out" and is_producer(model.get_submodule(layer))
    )
    makers = tuple(layer for layer in layers if (layer, "out") in found.mixed)
    residual = any(classes.is_summed(root) for root in roots)
    reason = classes.reason(roots[0])
    readers = [place for place in where if place[1] == "in" and place in found.mixed]
    if reason is not None:
        silent = reason == IS_OUTPUT and not readers
        return Bundle(layers, residual, None, None if silent else reason)
    if not readers or not makers:
        return Bundle(layers, residual, None, None)
    width = len(roots)
    if width < 2:
        single = all(len(places[maker, "out"]) == 1 for maker in makers)
        mixed = "its channels are mixed with one another, so that they could only go together"
        return Bundle(layers, residual, None, None if single else mixed)
    sides: dict[Place, LayerSide] = {}
    for place in where:
        pairs = sorted((p, c) for c, one in enumerate(lying) for p in one[place])
        positions, channels = (tuple(values) for values in zip(*pairs, strict=True))
        spread = _spread(places[place]) if place in readers else 1
        sides[place] = LayerSide(*place, len(places[place]), positions, channels, spread or 1)
    producers = tuple(side for place, side in sides.items() if place[0] in makers and place[1] == "out")
    consumers = tuple(sides[place] for place in readers)
    others = tuple(side for side in sides.values() if side not in producers + consumers)
    group = ChannelGroup(makers[0], width, producers, others, consumers, residual)
    return Bundle(layers, residual, group, None)


def _places(found: Findings, model: nn.Module) -> dict[Place, Tensor]:
    """The marks of every side; pins what cannot be told of a side alone."""
    channels = found.channels
    places: dict[Place, Tensor] = dict(found.sides)
    for (layer, side), marks in found.sides.items():
        if side == "in" and (layer, side) in found.mixed:
            _check_read(channels, layer, marks)
    for size in found.sizes:
        place = (size.owner, size_side(size.attribute, size.place))
        known = places.setdefault(place, size.marks)
        channels.tie(known, size.marks)
    shadows = {name: _shadow(channels, name, found.touches, model) for name in _touched(found.touches)}
    classes = channels.classes()
    for name, marks in shadows.items():
        owner, _, own = name.rpartition(".")
        roots = classes.of(marks)
        dims = [d for d in range(roots.ndim) if not torch.equal(roots, _first(roots, d))]
        if (owner, "out") in places:
            channels.pin(marks, f"its channels meet {name!r}: forward reads it past its layer")
        elif len(dims) != 1 or not marks.all():
            channels.pin(marks, f"its channels meet {name!r}, but not along one of its dimensions")
        else:
            places[owner, parameter_side(own, dims[0])] = _line(marks, dims[0])
    return places


def _touched(touches: Sequence[Touch]) -> list[str]:
    return list(dict.fromkeys(touch.name for touch in touches))


def _shadow(channels: Channels, name: str, touches: Sequence[Touch], model: nn.Module) -> Tensor:
    """The marks that every element of a parameter meets; those of one element are tied."""
    owner, _, own = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), own)
    marks = torch.zeros(tensor.numel(), dtype=torch.int64)
    for touch in touches:
        if touch.name == name:
            before = marks[touch.elements]
            channels.tie(before, touch.marks)
            marks[touch.elements] = torch.where(before > 0, before, touch.marks)
            channels.tie(marks[touch.elements], touch.marks)
    return marks.view(tensor.shape)


def _first(roots: Tensor, dim: int) -> Tensor:
    return roots.narrow(dim, 0, 1).expand_as(roots)


def _line(marks: Tensor, dim: int) -> Tensor:
    return marks[tuple(slice(None) if d == dim else 0 for d in range(marks.ndim))]


def _runs(marks: Tensor) -> list[tuple[int, int, int]]:
    """Start, length and mark of every run of one mark, those of no channel left out."""
    values = marks.tolist()
    starts = [0, *(p for p, (a, b) in enumerate(pairwise(values), 1) if a != b), len(values)]
    return [(a, b - a, values[a]) for a, b in pairwise(starts) if values[a] > 0]


def _spread(marks: Tensor) -> int | None:
    """How many positions in a row carry one mark; None if that differs."""
    runs = _runs(marks)
    lengths = {length for _, length, _ in runs}
    if len(lengths) > 1:
        return None
    spread = next(iter(lengths), 1)
    aligned = all(start % spread == 0 for start, _, _ in runs) and len(marks) % spread == 0
    return spread if aligned else None


def _check_read(channels: Channels, layer: str, marks: Tensor) -> None:
    if _spread(marks) is None:
        channels.pin(marks, f"{layer!r} reads maps of several sizes")
        return
    times = torch.tensor([mark for _, _, mark in _runs(marks)], dtype=torch.int64).bincount()
    if len(times) and int(times.max()) > MOST_READ:
        channels.pin(marks, f"{layer!r} does not read its channels one after another")
