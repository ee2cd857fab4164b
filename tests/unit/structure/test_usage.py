"""Parameters that forward uses, in either mode and however it reads them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning.structure.restoring import state_restored
from acsp_lightning.structure.usage import unused_parameters

X = (torch.randn(2, 4),)


class Distilled(nn.Module):
    """A teacher, a copy, a loss with weights and an unused head beside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        self.teacher = nn.Sequential(nn.Linear(4, 50), nn.Sequential(nn.Linear(50, 3)))
        self.teacher.requires_grad_(False)
        self.loss = nn.Linear(3, 3, bias=False)
        self.heads = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 7)])

    def forward(self, x: Tensor) -> Any:
        return self.heads[0](self.network(x))


def test_what_forward_never_uses_is_named_by_its_outermost_module() -> None:
    found = unused_parameters(Distilled(), X)
    assert found == {"teacher": 4 * 50 + 50 + 50 * 3 + 3, "loss": 9, "heads.1": 3 * 7 + 7}


def test_a_network_that_is_used_as_a_whole() -> None:
    assert unused_parameters(nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2)), X) == {}


class Auxiliary(nn.Module):
    """A second head in training, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_what_is_used_in_training_alone_counts() -> None:
    model = Auxiliary().eval()
    assert unused_parameters(model, X) == {}
    assert not model.training


class ReadsPast(nn.Module):
    """Never calls what holds its weights."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.held, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scales = nn.ParameterList([torch.ones(4), torch.ones(4)])

    def forward(self, x: Tensor) -> Any:
        if self.how == "functional":
            return functional.linear(x, self.held.weight)
        if self.how == "frozen":
            with torch.no_grad():
                return x @ self.held.weight.T
        if self.how == "list":
            return x * self.scales[0]
        return x.to(self.held.weight.device) + self.other.weight.shape[0]


@pytest.mark.parametrize(
    ("how", "unused"),
    [
        ("functional", {"held.bias": 4, "other": 20, "scales": 8}),
        ("frozen", {"held.bias": 4, "other": 20, "scales": 8}),
        ("list", {"held": 20, "other": 20, "scales.1": 4}),
        ("shapes", {"held": 20, "other": 20, "scales": 8}),
    ],
)
def test_parameters_that_are_read_past_their_modules(how: str, unused: dict[str, int]) -> None:
    assert unused_parameters(ReadsPast(how), X) == unused


@pytest.mark.parametrize("fast", [True, False])
def test_attention_reads_the_weights_of_children_that_it_never_calls(fast: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=fast).eval()
    assert unused_parameters(layer, (torch.randn(2, 3, 4),)) == {}


def test_shared_parameters_are_used_wherever_they_are() -> None:
    model = Distilled()
    model.teacher[0].bias = None
    model.teacher[1][0].weight = nn.Parameter(torch.zeros(3, 50))
    model.loss = model.network[2]
    assert unused_parameters(model, X) == {"teacher": 4 * 50 + 50 * 3 + 3, "heads.1": 28}


class TrainsOnPairs(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("pairs are wanted")
        return super().forward(x)


def test_a_train_mode_that_fails_tells_nothing() -> None:
    model = nn.Sequential(TrainsOnPairs(4, 2))
    with state_restored(model):
        assert unused_parameters(model, X) == {}
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
