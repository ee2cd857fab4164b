"""What a consumer loses, computed from the samples themselves instead of their moments."""

import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import ChannelCurves, trace_curves
from acsp_lightning.selection.damage import (
    STEPS,
    DamageCurve,
    candidate_widths,
    damage_curve,
    lower_hull,
    output_sizes,
    total_damage,
)
from acsp_lightning.selection.scores import score_channels
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.refit import prepare_refit
from acsp_lightning.structure.targets import Target
from acsp_lightning.structure.tracing import trace_groups

pytestmark = pytest.mark.usefixtures("every_position")

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(36) % 3
X = torch.randn(36, 3, 6, 6, generator=GENERATOR, dtype=torch.float64)
X += torch.randn(3, 3, 6, 6, generator=GENERATOR, dtype=torch.float64)[LABELS]


class Net(nn.Module):
    """Layers by name, and a forward that is a function of them."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.wiring = forward

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.wiring(self, x)
        return found


def chain() -> Net:
    return Net(
        lambda net, x: net.head(functional.relu(net.read(functional.relu(net.make(x)))).mean((2, 3))),
        make=nn.Conv2d(3, 9, 3, padding=1),
        read=nn.Conv2d(9, 7, 1),
        head=nn.Linear(7, 3),
    )


def with_norm() -> Net:
    return Net(
        lambda net, x: net.head(
            functional.relu(net.norm(net.read(torch.tanh(net.make(x))))).mean((2, 3))
        ),
        make=nn.Conv2d(3, 9, 3, padding=1),
        read=nn.Conv2d(9, 7, 1, bias=False),
        norm=nn.BatchNorm2d(7),
        head=nn.Linear(7, 3),
    )


def residual() -> Net:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = operator.iadd(net.norm(net.read(functional.relu(net.make(x)))), x)
        return net.head(functional.relu(x).mean((2, 3)))

    return Net(
        forward,
        stem=nn.Conv2d(3, 7, 3, padding=1),
        make=nn.Conv2d(7, 9, 3, padding=1),
        read=nn.Conv2d(9, 7, 1, bias=False),
        norm=nn.BatchNorm2d(7),
        head=nn.Linear(7, 3),
    )


def two_readers() -> Net:
    return Net(
        lambda net, x: net.head(
            torch.cat([net.read(x := functional.relu(net.make(x))), net.also(x)], 1).mean((2, 3))
        ),
        make=nn.Conv2d(3, 9, 3, padding=1),
        read=nn.Conv2d(9, 7, 1),
        also=nn.Conv2d(9, 5, 1, bias=False),
        head=nn.Linear(12, 3),
    )


def concatenated() -> Net:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = functional.relu(torch.cat([net.other(x), net.make(x)], 1))
        return net.head(functional.relu(net.read(x)).mean((2, 3)))

    return Net(
        forward,
        other=nn.Conv2d(3, 5, 3, padding=1),
        make=nn.Conv2d(3, 9, 3, padding=1),
        read=nn.Conv2d(14, 7, 1),
        head=nn.Linear(7, 3),
    )


def transposed() -> Net:
    return Net(
        lambda net, x: net.head(functional.relu(net.read(functional.relu(net.make(x)))).mean((2, 3))),
        make=nn.Conv2d(3, 9, 3, padding=1),
        read=nn.ConvTranspose2d(9, 7, 1),
        head=nn.Linear(7, 3),
    )


def built(make: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = make().double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(7))
                module.running_var.copy_(0.5 + torch.rand(7))
    return model


Found = tuple[dict[str, ChannelGroup], Activations, dict[str, ChannelCurves], Mapping[str, Target]]


def looked_at(model: nn.Module, **options: Any) -> Found:
    groups = {group.name: group for group in trace_groups(model, (X[:2],), **options).groups}
    capture = ActivationCapture(model, groups.values(), None, num_classes=3)
    capture.attach()
    capture.expect(LABELS)
    model(X)
    capture.detach()
    activations = capture.finish()
    curves = {}
    for name, group in groups.items():
        evidence = score_channels(model, group, activations)
        curves[name] = trace_curves(evidence.distances, evidence.contributions)
    layers = dict.fromkeys(side.layer for group in groups.values() for side in group.consumers)
    return groups, activations, curves, output_sizes(prepare_refit(model, layers, [(X,)]).targets)


def seen(model: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
    """Input and output of a layer on X."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _module, arguments, output: calls.append((arguments[0].clone(), output.clone()))
    )
    with torch.no_grad():
        model(X)
    handle.remove()
    return calls[0]


def rows(maps: Tensor) -> np.ndarray[Any, Any]:
    """(samples and positions, channels)."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1]).numpy()


def residuals(maps: np.ndarray[Any, Any], stay: list[int]) -> np.ndarray[Any, Any]:
    best = np.linalg.lstsq(maps[:, stay], maps, rcond=None)[0]
    return maps - maps[:, stay] @ best


def lost(model: nn.Module, layer: str, kept: list[int], offset: int = 0) -> float:
    """Share of what a 1x1 convolution feeds that the kept channels cannot explain, 9 in the group."""
    inputs, output = seen(model, layer)
    maps, module = rows(inputs), model.get_submodule(layer)
    stay = [c for c in range(maps.shape[1]) if not 0 <= c - offset < 9 or c - offset in kept]
    weight = module.weight.detach().flatten(1).numpy()
    if isinstance(module, nn.ConvTranspose2d):
        weight = module.weight.detach().flatten(1).numpy().T
    error, whole = residuals(maps, stay) @ weight.T, rows(output)
    if hasattr(model, "norm"):
        scale = (model.norm.weight / (model.norm.running_var + 1e-5).sqrt()).detach().numpy()
        error, whole = error * scale, whole * scale
    if hasattr(model, "stem"):
        whole = whole + rows(seen(model, "stem")[1])
    if isinstance(module, nn.ConvTranspose2d):  # without a target: its energy, bias aside
        return float((error**2).sum() / ((maps @ weight.T) ** 2).sum())
    return float((error**2).sum(1).mean() / whole.var(0).sum())


CASES = {
    "chain": (chain, {"read": 0}),
    "with norm": (with_norm, {"read": 0}),
    "residual": (residual, {"read": 0}),
    "two readers": (two_readers, {"read": 0, "also": 0}),
    "concatenation": (concatenated, {"read": 5}),
    "transposed": (transposed, {"read": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_damage_is_what_least_squares_on_the_samples_leaves(name: str) -> None:
    make, readers = CASES[name]
    model = built(make)
    groups, activations, curves, targets = looked_at(model)
    found = damage_curve(model, groups["make"], activations, curves["make"], targets, range(2, 9))
    assert found.ks == tuple(range(2, 10))
    brute = [
        sum(lost(model, layer, medoids.tolist(), offset) for layer, offset in readers.items())
        for medoids in curves["make"].sweep.medoids
    ]
    assert len(brute) == 7
    expected = np.minimum.accumulate([*brute, 0.0])
    np.testing.assert_allclose(found.damage, expected, rtol=1e-3, atol=1e-5)
    assert found.damage[0] > 0.01


def test_taps_and_positions_count_one_by_one() -> None:
    """The taps of a kernel, and the positions after a flatten, are taken for uncorrelated."""
    model = built(
        lambda: Net(
            lambda net, x: net.head(net.read(functional.relu(net.make(x))).flatten(1)),
            make=nn.Conv2d(3, 9, 3, padding=1),
            read=nn.Conv2d(9, 7, 3, padding=1),
            head=nn.Linear(7 * 36, 3),
        )
    )
    groups, activations, curves, targets = looked_at(model)
    for name, layer, taps, ks in (("make", "read", 9, range(2, 9)), ("read", "head", 36, range(2, 7))):
        inputs, output = seen(model, layer)
        maps, module = (
            rows(inputs if layer == "read" else inputs.view(36, 7, 6, 6)),
            getattr(model, layer),
        )
        weight = module.weight.detach().reshape(len(module.weight), -1, taps).numpy()
        found = damage_curve(model, groups[name], activations, curves[name], targets, ks)
        whole = rows(output) if layer == "read" else output.numpy()
        brute = [
            sum(
                ((residuals(maps, medoids.tolist()) @ weight[:, :, tap].T) ** 2).sum(1).mean()
                for tap in range(taps)
            )
            / whole.var(0).sum()
            for medoids in curves[name].sweep.medoids
        ]
        expected = np.minimum.accumulate([*brute, 0.0])
        np.testing.assert_allclose(found.damage, expected, rtol=1e-3, atol=1e-5)


def curve_of(make: Any = chain, ks: Sequence[int] = range(2, 9)) -> DamageCurve:
    model = built(make)
    groups, activations, curves, targets = looked_at(model)
    return damage_curve(model, groups["make"], activations, curves["make"], targets, ks)


@pytest.mark.parametrize("name", CASES)
def test_damage_falls_to_nothing(name: str) -> None:
    damage = curve_of(CASES[name][0]).damage
    assert damage[-1] == 0
    assert all(a >= b >= 0 for a, b in pairwise(damage))


@pytest.mark.parametrize("ks", [(2, 3, 8), (5,), (8,), ()])
def test_only_the_widths_that_are_asked_for(ks: tuple[int, ...]) -> None:
    whole, found = curve_of(), curve_of(ks=ks)
    assert found.ks == (*ks, 9)
    assert found.damage[-1] == 0
    for k, damage in zip(found.ks, found.damage, strict=True):
        assert damage >= whole.damage[whole.ks.index(k)]


@pytest.mark.parametrize(
    ("width", "at_least", "round_to", "ks"),
    [
        (9, 2, 1, [2, 3, 4, 5, 6, 7, 8]),
        (9, 5, 1, [5, 6, 7, 8]),
        (9, 2, 4, [4, 8]),
        (9, 5, 4, [8]),
        (9, 2, 3, [3, 6]),
        (9, 9, 1, []),
        (9, 50, 1, []),
        (9, 2, 9, []),
        (9, 2, 8, [8]),
        (2, 2, 1, []),
        (3, 2, 1, [2]),
    ],
)
def test_widths_that_are_allowed(width: int, at_least: int, round_to: int, ks: list[int]) -> None:
    assert candidate_widths(width, at_least, round_to) == ks


@pytest.mark.parametrize("round_to", [1, 2, 8])
@pytest.mark.parametrize("width", [25, 26, 27, 90, 512, 2048])
def test_a_wide_group_is_looked_at_in_even_steps(width: int, round_to: int) -> None:
    every = range(max(2, round_to), width, round_to)
    found = candidate_widths(width, 2, round_to)
    assert len(found) == min(len(every), STEPS)
    assert found[0] == every[0]
    assert found[-1] == every[-1]
    assert set(found) <= set(every)
    if len(found) > 1:
        assert np.ptp(np.diff(found)) <= round_to


def test_two_channels_are_left_alone() -> None:
    model = built(
        lambda: Net(
            lambda net, x: net.read(functional.relu(net.make(x))).mean((2, 3)),
            make=nn.Conv2d(3, 2, 3, padding=1),
            read=nn.Conv2d(2, 3, 1),
        )
    )
    groups, activations, curves, targets = looked_at(model)
    found = damage_curve(model, groups["make"], activations, curves["make"], targets, [])
    assert found == DamageCurve((2,), (0.0,))


def test_copies_cost_nothing() -> None:
    model = built(chain)
    with torch.no_grad():
        for tensor in (model.make.weight, model.make.bias):
            tensor[3:] = tensor[torch.tensor([0, 1, 2, 0, 1, 2])]
    groups, activations, curves, targets = looked_at(model)
    found = damage_curve(model, groups["make"], activations, curves["make"], targets, range(2, 9))
    assert found.damage[0] > 1e-3
    assert max(found.damage[1:]) < 1e-4 * found.damage[0] + 1e-8


def test_what_nobody_reads_costs_nothing() -> None:
    model = built(chain)
    with torch.no_grad():
        model.read.weight.zero_()
        model.read.bias.zero_()
    groups, activations, curves, targets = looked_at(model)
    found = damage_curve(model, groups["make"], activations, curves["make"], targets, range(2, 9))
    assert set(found.damage) == {0.0}


def test_without_targets_the_energy_of_the_output_counts() -> None:
    model = built(chain)
    with torch.no_grad():
        model.read.bias.zero_()
    groups, activations, curves, _ = looked_at(model)
    found = damage_curve(model, groups["make"], activations, curves["make"], {}, range(2, 9))
    inputs, output = seen(model, "read")
    kept = curves["make"].sweep.medoids[0].tolist()
    weight = model.read.weight.detach().flatten(1).numpy()
    error = residuals(rows(inputs), kept) @ weight.T
    expected = (error**2).sum() / (rows(output) ** 2).sum()
    assert found.damage[0] == pytest.approx(expected, rel=1e-3)


def test_the_unit_of_a_layer_does_not_matter() -> None:
    """Ten times the activations, read by a tenth of the weight: the same function."""
    damage = []
    for factor in (1.0, 10.0):
        model = built(residual)
        with torch.no_grad():
            for tensor in (model.make.weight, model.make.bias):
                tensor *= factor
            model.read.weight /= factor
        groups, activations, curves, targets = looked_at(model)
        damage.append(
            damage_curve(model, groups["make"], activations, curves["make"], targets, range(2, 9)).damage
        )
    np.testing.assert_allclose(damage[0], damage[1], rtol=1e-6, atol=1e-12)


# -- curves ------------------------------------------------------------------------------------------


def test_total_damage_adds_up() -> None:
    curves = {
        "a": DamageCurve((2, 4, 8), (0.5, 0.25, 0.0)),
        "b": DamageCurve((3, 6), (2.0, 0.0)),
    }
    assert total_damage(curves, {"a": 4, "b": 3}) == 2.25
    assert total_damage(curves, {"a": 8, "b": 6}) == 0
    assert total_damage(curves, {}) == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_hull_lies_below_the_curve_and_touches_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    ks = np.sort(random.choice(np.arange(2, 60), 12, replace=False))
    damage = np.sort(random.random(12))[::-1] ** 2
    damage[-1] = 0.0
    curve = DamageCurve(tuple(map(int, ks)), tuple(map(float, damage)))
    hull = list(lower_hull(curve, curve.ks))
    assert hull[0] == 0
    assert hull[-1] == 11
    assert hull == sorted(set(hull))
    slopes = np.diff(damage[hull]) / np.diff(ks[hull])
    assert (np.diff(slopes) > 0).all()
    assert (damage >= np.interp(ks, ks[hull], damage[hull]) - 1e-12).all()


@pytest.mark.parametrize(
    ("damage", "hull"),
    [
        ((0.0,), [0]),
        ((1.0, 0.0), [0, 1]),
        ((2.0, 1.0, 0.0), [0, 2]),
        ((1.0, 1.0, 0.0), [0, 2]),
        ((1.0, 0.0, 0.0), [0, 1, 2]),
        ((0.0, 0.0, 0.0), [0, 2]),
    ],
)
def test_small_hulls(damage: tuple[float, ...], hull: list[int]) -> None:
    ks = tuple(range(2, 2 + len(damage)))
    assert list(lower_hull(DamageCurve(ks, damage), ks)) == hull
