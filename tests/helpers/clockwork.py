"""A clock that knows no noise: the time of a network is a formula of its layers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acsp_lightning.measure import latency
from acsp_lightning.measure.latency import Latency, LatencyComparison
from acsp_lightning.selection import clock

START = 2e-6  # of every layer
PRODUCT = 1e-9  # of every product of blocks
ELEMENT = 2e-9  # of a layer that passes its channels on
BLOCK_IN, BLOCK_OUT = 4, 8  # channels that are worked through at once


def blocks(width: int, block: int) -> int:
    """The width that hardware works through."""
    return math.ceil(width / block) * block


def layer_seconds(layer: nn.Module, value: Tensor, output: Tensor) -> float:
    """Time of one call of a layer, by formula."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        width, taps = layer.weight.shape[0], layer.weight[0].numel() // layer.weight.shape[1]
        inputs = blocks(layer.weight.shape[1], BLOCK_IN)
        pixels = output.numel() // width
        return START + PRODUCT * inputs * blocks(width, BLOCK_OUT) * taps * pixels
    return START + ELEMENT * value.numel()


def by_layer(network: nn.Module, arguments: tuple[Any, ...]) -> dict[str, float]:
    """Times of the layers of a network that have no layers in them, by qualified name."""
    found: dict[str, float] = {}

    def noting(name: str) -> Any:
        def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = found.get(name, 0.0) + layer_seconds(layer, inputs[0], output)

        return note

    leaves = [(name, leaf) for name, leaf in network.named_modules() if not list(leaf.children())]
    handles = [leaf.register_forward_hook(noting(name)) for name, leaf in leaves]
    try:
        with torch.no_grad():
            network(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found


def network_seconds(network: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """Sum over the layers of a network."""
    assert isinstance(network, nn.Module)
    return sum(by_layer(network, arguments).values())


def set_clock(monkeypatch: pytest.MonkeyPatch, timer: Any = network_seconds) -> None:
    """Let every time that is measured on the CPU be what ``timer`` says."""
    monkeypatch.setitem(latency.TIMERS, "cpu", timer)
    monkeypatch.setattr(clock, "SECONDS", 0.0)
    monkeypatch.setattr(clock, "FEWEST_PASSES", 3)
    monkeypatch.setattr("acsp_lightning.measure.layer_times.MOST_ROUNDS", 1)
    monkeypatch.setattr("acsp_lightning.measure.layer_times.WARM_UP", 0)


def compared(before: float, after: float, error: float = 0.0) -> LatencyComparison:
    """Two networks of some median, of which the ratio has some error."""

    def taken(median: float) -> Latency:
        return Latency(1, "cpu", 1, False, 25, median, (median, median))

    return LatencyComparison(taken(before), taken(after), before / after, error)
