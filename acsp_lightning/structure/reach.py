"""What the channels of one layer reach, and the group that they make."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from acsp_lightning.structure.groups import ChannelGroup, LayerSide, features_per_channel
from acsp_lightning.structure.layers import Side, is_consumer, is_producer, side_width


class NotCuttableError(Exception):
    """One group cannot be cut; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Everything that the channels of one layer reach.

    Attributes:
        sides: for every layer side that was reached, position -> channel.
        residual: whether a sum was among the operators.
        is_output: whether the network's output was reached.
        reason: why these channels cannot be cut, the first that was met; None if nothing was found.
    """

    sides: Mapping[tuple[str, Side], Mapping[int, int]]
    residual: bool
    is_output: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class Network:
    """What is looked up of a network for every layer.

    Attributes:
        model: the network.
        modules: its modules by name.
        names: their names.
        calls: how often forward calls its layers, in order of execution.
        tied: for every layer that owns a parameter together with another layer: the other's name.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    names: Mapping[nn.Module, str]
    calls: Mapping[str, int]
    tied: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module, calls: Mapping[str, int]) -> "Network":
        """The network of which a forward pass made ``calls``."""
        modules = dict(model.named_modules())
        names = {module: name for name, module in modules.items()}
        return cls(model, modules, names, calls, _tied_layers(model))


def as_group(reach: Reach, network: Network) -> ChannelGroup | None:
    """The group of channels; None for the output layer and for a single channel.

    Raises:
        NotCuttableError: with the reason.
    """
    if reach.reason is not None:
        raise NotCuttableError(reach.reason)
    modules, tied = network.modules, network.tied
    order = {name: place for place, name in enumerate(network.calls)}
    sides = sorted(
        (
            _layer_side(modules[name], name, side, mapping)
            for (name, side), mapping in reach.sides.items()
        ),
        key=lambda side: order[side.layer],
    )
    width = 1 + max(channel for side in sides for channel in side.channels)
    consumers = tuple(side for side in sides if side.side == "in")
    if width < 2 or not consumers:
        return None
    if reach.is_output:
        raise NotCuttableError("its channels are also part of the network's output")
    for side in sides:
        if set(side.channels) != set(range(width)):
            raise NotCuttableError(f"{side.layer!r} has only some of its channels (a slice or a split)")
    producers = tuple(
        side
        for side in sides
        if side.side == "out"
        and is_producer(modules[side.layer])
        and sorted(side.channels) == list(range(width))
        and side.width == width
    )
    passthrough = tuple(side for side in sides if side.side == "out" and side not in producers)
    for side in passthrough:
        if is_consumer(modules[side.layer]):
            raise NotCuttableError(f"only some of the channels of {side.layer!r} belong to it")
    for side in sides:
        if side.layer in tied:
            raise NotCuttableError(
                f"{side.layer!r} shares a parameter with {tied[side.layer]!r} (tied weights)"
            )
    for side in consumers:
        _check_blocks(side)
    return ChannelGroup(producers[0].layer, width, producers, passthrough, consumers, reach.residual)


def _layer_side(module: nn.Module, name: str, side: Side, mapping: Mapping[int, int]) -> LayerSide:
    width = side_width(module, side)
    positions = tuple(sorted(mapping))
    if positions[-1] >= width:
        raise NotCuttableError(
            f"the tracer found channel {positions[-1]} of {name!r}, which has {width}"
        )
    return LayerSide(name, side, width, positions, tuple(mapping[p] for p in positions))


def _check_blocks(side: LayerSide) -> None:
    """Every channel of a consumer must own aligned blocks of positions, all of one length."""
    spread = features_per_channel(side)
    for start in range(0, len(side.positions), spread):
        block = slice(start, start + spread)
        first = side.positions[start]
        aligned = side.positions[block] == tuple(range(first, first + spread))
        if not aligned or first % spread or len(set(side.channels[block])) > 1:
            raise NotCuttableError(f"{side.layer!r} does not read its channels one after another")
    if side.width % spread:
        raise NotCuttableError(f"{side.layer!r} reads maps of several sizes")


def _tied_layers(model: nn.Module) -> dict[str, str]:
    """For every layer that owns a parameter together with another layer: the other's name."""
    owner: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            other = owner.setdefault(id(parameter), name)
            if other != name:
                tied[name], tied[other] = other, name
    return tied
