"""Times of widths against networks that were really cut to them and timed by a clock without noise."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers import clockwork
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import apply_plan
from acsp_lightning.measure.layer_times import Call, layer_calls, time_layers
from acsp_lightning.measure.time_table import TimeTable
from acsp_lightning.selection.time_model import TimeModel, timed_layers
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Chain(nn.Module):
    """Convolutions whose times are staircases, a flatten, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.b = nn.Conv2d(24, 40, 3, stride=2)
        self.fc = nn.Linear(40 * 9, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.b(functional.relu(self.norm(self.a(x)))))
        out: Tensor = self.head(functional.relu(self.fc(x.flatten(1))))
        return out


class Grouped(nn.Module):
    """A depthwise convolution, one of which every group loses a share, and one that loses groups."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.shares = nn.Conv2d(16, 24, 1, groups=2)
        self.whole = nn.Conv2d(24, 24, 3, groups=8)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.depthwise(functional.relu(self.expand(x))))
        x = functional.relu(self.whole(functional.relu(self.shares(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def modelled(
    model: nn.Module, groups: Sequence[ChannelGroup], candidates: dict[str, list[int]], **options: Any
) -> TimeModel:
    layers = timed_layers(model, groups, layer_calls(model, (IMAGE,)), candidates)
    table = TimeTable({}, options.get("stopwatch", time_layers))
    return TimeModel(layers, {layer.name: layer.times(table, 0.0) for layer in layers})


def truth(model: nn.Module, groups: Sequence[ChannelGroup], widths: dict[str, int]) -> float:
    """Sum over the layers with weights of a network that was really cut."""
    cut = copy.deepcopy(model).eval()
    apply_plan(cut, build_plan(groups, {name: range(k) for name, k in widths.items()}))
    found: list[float] = []
    for layer in cut.modules():
        if not list(layer.children()) and list(layer.parameters()):
            layer.register_forward_hook(
                lambda m, x, y: found.append(clockwork.layer_seconds(m, x[0], y))
            )
    with torch.no_grad():
        cut(IMAGE)
    return sum(found)


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.set_clock(monkeypatch)


@pytest.mark.parametrize("network", [Chain, Grouped])
def test_times_are_those_of_networks_that_are_really_cut(network: Callable[[], nn.Module]) -> None:
    model = network().eval()
    groups = trace_groups(model, (IMAGE,)).groups
    assert groups
    candidates = {g.name: list(range(2, g.width)) for g in groups}
    costs = modelled(model, groups, candidates)
    whole = {g.name: g.width for g in groups}
    assert costs.total({}) == pytest.approx(truth(model, groups, whole))
    for group in groups:
        for k in candidates[group.name]:
            found = costs.total({group.name: k})
            assert found == pytest.approx(truth(model, groups, {group.name: k})), (group.name, k)
            assert costs.saved({}, group.name, k) == pytest.approx(costs.total({}) - found)
    random = np.random.default_rng(0)
    for _ in range(20):
        widths = {g.name: int(random.integers(2, g.width + 1)) for g in groups}
        # A start of a few microseconds is added to products of both sides.
        assert costs.total(widths) == pytest.approx(truth(model, groups, widths), rel=0.03)


def test_saved_is_the_difference_of_totals_also_between_points() -> None:
    model = Chain().eval()
    groups = trace_groups(model, (IMAGE,)).groups
    costs = modelled(model, groups, {g.name: [2, g.width // 2] for g in groups})
    for low, high in itertools.product((3, 5), (7, 11)):
        widths = {g.name: high for g in groups}
        for group in groups:
            expected = costs.total(widths) - costs.total({**widths, group.name: low})
            assert costs.saved(widths, group.name, low) == pytest.approx(expected)
    assert costs.saved({}, "no group", 3) == 0


def test_between_points_times_are_interpolated() -> None:
    """Of a time that is linear in both sides, few points tell all of them."""

    def linear(layers: Sequence[tuple[nn.Module, Call]], _: float) -> list[float]:
        return [float(layer.weight.numel()) for layer, _ in layers]  # type: ignore[union-attr, operator]

    model = Chain().eval()
    groups = trace_groups(model, (IMAGE,)).groups
    costs = modelled(model, groups, {g.name: [2, 8] for g in groups}, stopwatch=linear)
    random = np.random.default_rng(1)
    for _ in range(20):
        widths = {g.name: int(random.integers(2, g.width + 1)) for g in groups}
        cut = copy.deepcopy(model)
        apply_plan(cut, build_plan(groups, {name: range(k) for name, k in widths.items()}))
        weights = [p for name, p in cut.named_parameters() if name.endswith("weight")]
        assert costs.total(widths) == pytest.approx(sum(weight.numel() for weight in weights))


def test_layers_of_one_kind_are_timed_once() -> None:
    timed: list[str] = []

    def stopwatch(layers: Sequence[tuple[nn.Module, Call]], _: float) -> list[float]:
        timed.extend(str(layer) for layer, _ in layers)
        return [1.0] * len(layers)

    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(4))).eval()
    layers = timed_layers(model, (), layer_calls(model, (IMAGE,)), {})
    table = TimeTable({}, stopwatch)
    for layer in layers:
        layer.times(table, 0.0)
    assert len(layers) == 4
    assert len({layer.kind for layer in layers}) == 1
    assert len(timed) == 1


def test_a_layer_that_is_called_twice_takes_both_times() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(self.conv(x))
            return y

    model = Twice().eval()
    assert modelled(model, (), {}).total({}) == pytest.approx(truth(model, (), {}))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_a_layer_whose_weight_has_a_history() -> None:
    """Computed by a hook in the last training step: deepcopy refuses it."""
    model = Chain()
    model.fc = nn.utils.weight_norm(model.fc)
    model(IMAGE)
    model.eval()
    calls = layer_calls(model, (IMAGE,))
    layers = {layer.name: layer for layer in timed_layers(model, (), calls, {})}
    (sample,) = layers["fc"].samples({}, {})
    whole, call = sample()
    assert whole(torch.rand(call.shape)).shape[1] == 16


def test_layers_that_are_cut_along_parameters_are_left_to_the_rest_of_the_network() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(24, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.gamma * x

    model = Chain().eval()
    model.norm = Scale()  # type: ignore[assignment]
    groups = trace_groups(model, (IMAGE,)).groups
    assert any(side.layer == "norm" for group in groups for side in group.sides)
    layers = timed_layers(model, groups, layer_calls(model, (IMAGE,)), {})
    assert [layer.name for layer in layers] == ["a", "b", "fc", "head"]
