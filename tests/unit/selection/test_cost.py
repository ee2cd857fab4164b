"""FLOPs of widths against networks that were really cut to them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import apply_plan, measure_complexity
from acsp_lightning.selection.cost import FlopsModel
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 12, 3, stride=2)
        self.c = nn.Conv2d(12, 10, (1, 3))
        self.fc = nn.Linear(10 * 3, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.a(x)))
        x = functional.relu(self.c(functional.relu(self.b(x))))
        out: Tensor = self.head(functional.relu(self.fc(x.flatten(1))))
        return out


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.depthwise(self.norm(self.expand(x))))
        out: Tensor = self.head(self.project(x).flatten(2).sum(2))
        return out


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(13)
        self.c = nn.Conv2d(13, 6, 1)
        self.head = nn.Linear(6 + 13, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a(x))
        x = torch.cat([x, self.b(x)], 1)
        x = torch.cat([self.c(self.norm(x)), x], 1)
        out: Tensor = self.head(x.flatten(2).sum(2))
        return out


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 10, 3, stride=2)
        self.down = nn.Conv2d(8, 10, 3, stride=2)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norm(self.b(functional.relu(self.a(x))))
        x = self.c(functional.relu(x)) + self.down(x)
        out: Tensor = self.head(x.flatten(2).sum(2))
        return out


NETWORKS = {
    "chain": (Chain, False),
    "depthwise": (Depthwise, False),
    "concatenation": (Concatenated, False),
    "residual": (Residual, False),
    "residual stream": (Residual, True),
}


def random_widths(groups: tuple[ChannelGroup, ...], seed: int) -> dict[str, int]:
    random = np.random.default_rng(seed)
    return {group.name: int(random.integers(1, group.width + 1)) for group in groups}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", NETWORKS)
def test_the_total_is_that_of_the_network_really_cut(name: str, seed: int) -> None:
    make, residual = NETWORKS[name]
    model = make().eval()
    groups = trace_groups(model, (IMAGE,), residual=residual).groups
    costs = FlopsModel(groups, measure_complexity(model, IMAGE).by_layer)
    widths = random_widths(groups, seed)
    assert costs.total({}) == measure_complexity(model, IMAGE).flops
    apply_plan(model, build_plan(groups, {name: range(k) for name, k in widths.items()}))
    counted = measure_complexity(model, IMAGE)
    assert sum(counted.by_layer.values()) == counted.flops
    assert costs.total(widths) == pytest.approx(counted.flops, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_saved_is_the_difference_of_two_totals(name: str, seed: int) -> None:
    make, residual = NETWORKS[name]
    model = make().eval()
    groups = trace_groups(model, (IMAGE,), residual=residual).groups
    costs = FlopsModel(groups, measure_complexity(model, IMAGE).by_layer)
    widths, others = random_widths(groups, seed), random_widths(groups, seed + 10)
    for group, k in others.items():
        saved = costs.total(widths) - costs.total({**widths, group: k})
        assert costs.saved(widths, group, k) == pytest.approx(saved, abs=1e-6)


def test_a_pool_that_is_a_layer_never_makes_the_total_too_small() -> None:
    """It has no channels of its own to cut; what is saved on it comes on top."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    groups = trace_groups(model, (IMAGE,)).groups
    costs = FlopsModel(groups, measure_complexity(model, IMAGE).by_layer)
    apply_plan(model, build_plan(groups, {"0": range(2)}))
    counted = measure_complexity(model, IMAGE).flops
    assert counted < costs.total({"0": 2}) <= counted + 8 * 36
