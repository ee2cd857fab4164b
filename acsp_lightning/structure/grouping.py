"""From marks to groups: channels that lie on the same sides are chosen from together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    ranks = {name: rank for rank, name in enumerate(order)}
    ordered = sorted(places, key=lambda place: (ranks.get(place[0], len(ranks)), place[1]))
    classes = found.channels.classes()
    roots = {place: classes.of(places[place]) for place in ordered}
    bundled = [
        _bundle(alike, {place: roots[place] for place in where}, places, found, classes, model)
        for alike, where in _alike(roots, classes)
    ]
    return sorted(
        (bundle for bundle in bundled if bundle.layers), key=lambda bundle: ranks[bundle.layers[0]]
    )


def _alike(roots: Mapping[Place, Tensor], classes: Classes) -> list[tuple[Tensor, list[Place]]]:
    """Classes that lie equally often on the same sides, and stay for the same reason, if they must.

    Args:
        roots: the class of every position of every side.
        classes: all classes.

    Returns:
        Their roots, ascending, and the sides that they lie on; in order of the first root.
    """
    kinds = classes.reason_numbers()
    lying = {place: torch.unique(own[own > 0], return_counts=True) for place, own in roots.items()}
    for here, times in lying.values():
        _, finer = torch.unique((kinds[here] << 32) + times, return_inverse=True)
        kinds[here] = finer + 1 + kinds.amax()
    where: dict[int, list[Place]] = {}
    for place, (here, _) in lying.items():
        for kind in torch.unique(kinds[here]).tolist():
            where.setdefault(kind, []).append(place)
    known = torch.unique(torch.cat([kinds[:0], *(own[own > 0] for own in roots.values())]))
    alike = [(known[kinds[known] == kind], sides) for kind, sides in where.items()]
    return sorted(alike, key=lambda one: int(one[0][0]))


def _bundle(
    alike: Tensor,
    roots: Mapping[Place, Tensor],
    places: Mapping[Place, Tensor],
    found: Findings,
    classes: Classes,
    model: nn.Module,
) -> Bundle:
    layers = tuple(
        layer for layer, side in roots if side == "out" and is_producer(model.get_submodule(layer))
    )
    makers = tuple(layer for layer in layers if (layer, "out") in found.mixed)
    residual = any(classes.is_summed(root) for root in alike.tolist())
    reason = classes.reason(int(alike[0]))
    readers = [place for place in roots if place[1] == "in" and place in found.mixed]
    if reason is not None:
        silent = reason == IS_OUTPUT and not readers
        return Bundle(layers, residual, None, None if silent else reason)
    if not readers or not makers:
        return Bundle(layers, residual, None, None)
    width = len(alike)
    if width < 2:
        single = all(len(roots[maker, "out"]) == 1 for maker in makers)
        mixed = "its channels are mixed with one another, so that they could only go together"
        return Bundle(layers, residual, None, None if single else mixed)
    sides: dict[Place, LayerSide] = {}
    for place, own in roots.items():
        channels = torch.searchsorted(alike, own).clamp(max=width - 1)
        positions = (alike[channels] == own).nonzero().flatten()
        spread = _spread(places[place]) if place in readers else 1
        sides[place] = LayerSide(
            *place, len(own), tuple(positions.tolist()), tuple(channels[positions].tolist()), spread or 1
        )
    producers = tuple(side for place, side in sides.items() if place[0] in makers and place[1] == "out")
    consumers = tuple(sides[place] for place in readers)
    others = tuple(side for side in sides.values() if side not in producers + consumers)
    # What a layer gives of all its inputs does not change with its outputs.
    changed = {layer for layer, side in sides if side != "out" or (layer, side) not in found.mixed}
    norms = tuple(norm for norm in found.norms if norm.layer in changed)
    group = ChannelGroup(makers[0], width, producers, others, consumers, residual, norms)
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
    touches = _of_one_class(found.touches, channels)
    shadows = {name: _shadow(channels, name, touches, model) for name in _touched(touches)}
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


def _of_one_class(touches: Sequence[Touch], channels: Channels) -> list[Touch]:
    """The touches, without those in which an element is met by channels that go one by one."""
    if not any(touch.loose for touch in touches):
        return list(touches)
    classes = channels.classes()

    def is_of_one(touch: Touch) -> bool:
        met = torch.stack([touch.elements, classes.of(touch.marks)])
        return len(torch.unique(met, dim=1)[0]) == len(torch.unique(touch.elements))

    return [touch for touch in touches if not touch.loose or is_of_one(touch)]


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


def _runs(marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Start, length and mark of every run of one mark, those of no channel left out."""
    values, lengths = torch.unique_consecutive(marks, return_counts=True)
    starts = lengths.cumsum(0) - lengths
    return starts[values > 0], lengths[values > 0], values[values > 0]


def _spread(marks: Tensor) -> int | None:
    """How many positions in a row carry one mark; None if that differs."""
    starts, lengths, _ = _runs(marks)
    if not len(lengths):
        return 1
    spread = int(lengths[0])
    aligned = not (starts % spread).any() and len(marks) % spread == 0
    return spread if aligned and bool((lengths == spread).all()) else None


def _check_read(channels: Channels, layer: str, marks: Tensor) -> None:
    if _spread(marks) is None:
        channels.pin(marks, f"{layer!r} reads maps of several sizes")
        return
    _, _, values = _runs(marks)
    if len(values) and int(values.bincount().amax()) > MOST_READ:
        channels.pin(marks, f"{layer!r} does not read its channels one after another")
