import copy

import pytest
import torch
from helpers import normed
from helpers.networks import Wired
from helpers.structures import Gained, Parameter, SamePadding, scaled
from torch import nn
from torch.nn import functional

from acsp_lightning.structure.layers import has_own_forward
from acsp_lightning.structure.probing import can_lose_inputs, normalises, standardises_filters


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Unit(nn.Conv2d):
    """Divides its filters by their lengths, which no other inputs leave as they are."""

    def forward(self, x):
        weight = self.weight / self.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        return self._conv_forward(x, weight, self.bias)


class Counting(nn.Linear):
    """Takes its width for granted."""

    def forward(self, x):
        return functional.linear(x.view(-1, 6), self.weight, self.bias)


@pytest.mark.parametrize(
    ("layer", "own", "can"),
    [
        (nn.Conv2d(6, 4, 3), False, True),
        (SamePadding(6, 4, 3), True, True),
        (Gained(6, 4, 3), True, True),
        (Standardised(6, 4, 3), True, False),
        (Standardised(6, 4, 3, groups=2), True, False),
        (nn.Conv2d(6, 4, 3, groups=2), False, True),
        (nn.Conv2d(1, 4, 3), False, True),
    ],
)
def test_layers_are_tried_alone(layer: nn.Module, own: bool, can: bool) -> None:
    before = copy.deepcopy(layer.state_dict())
    assert has_own_forward(layer) == own
    assert can_lose_inputs(layer, torch.rand(2, layer.in_channels, 5, 5)) == can
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_layer_that_fails_cannot() -> None:
    assert not can_lose_inputs(Counting(6, 4), torch.rand(2, 6))


@pytest.mark.parametrize(
    ("layer", "does"),
    [
        (Standardised(6, 4, 3), True),
        (normed.Standardised(6, 4, 1), True),
        (normed.Gained(6, 4, 3), True),
        (Standardised(6, 4, 3, groups=2), False),
        (Standardised(3, 4, 3), False),  # too few to tell
        (Unit(6, 4, 3), False),
        (Counting(6, 4), False),
    ],
)
def test_standardised_filters_are_told_by_what_they_do(layer: nn.Module, does: bool) -> None:
    given = torch.rand(2, 6) if isinstance(layer, nn.Linear) else torch.rand(2, layer.in_channels, 5, 5)
    before = copy.deepcopy(layer.state_dict())
    assert standardises_filters(layer, given) == does
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "dim", "does"),
    [
        (normed.MapNorm(6), 1, True),
        (nn.LayerNorm(6), -1, True),
        (nn.RMSNorm(6), -1, True),
        (nn.GroupNorm(1, 6), 1, True),
        (normed.NormAct(6), 1, True),
        (normed.HandNorm(6), 1, True),
        (normed.Responses(6), -1, True),  # its gains are zero
        (Parameter(scaled, 6, 1, 1), 1, False),  # every channel by itself
        (Parameter(lambda x, w: x.softmax(1) * w.view(-1, 1, 1), 6), 1, False),
        (Parameter(lambda x, w: x.cumsum(1) * w.view(-1, 1, 1), 6), 1, False),
        (Wired(lambda net, x: x - x.mean(1, keepdim=True)), 1, False),  # no parameter, no side
    ],
)
def test_norms_are_told_by_what_they_do(layer: nn.Module, dim: int, does: bool) -> None:
    given = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(layer.state_dict())
    assert normalises(layer, given, dim) == does
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
