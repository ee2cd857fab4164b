import copy

import pytest
import torch
from helpers.structures import Gained, SamePadding
from torch import nn
from torch.nn import functional

from acsp_lightning.structure.layers import has_own_forward
from acsp_lightning.structure.probing import can_lose_inputs


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
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
