"""ChannelScores and budgets against sums written out by hand and networks that were really cut."""

from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers import CLASSES, conv_net, noisy_images
from torch import Tensor, nn

from acsp_lightning import SelectionConfig, apply_plan, measure_complexity
from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.capture.statistics import Activations
from acsp_lightning.functional import separability_vectors
from acsp_lightning.selection.allocation import check_reachable, select_groups
from acsp_lightning.selection.scores import score_channels
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups

IMAGES, LABELS = noisy_images(18, seed=2).tensors


def captured(model: nn.Module, **options: Any) -> tuple[dict[str, ChannelGroup], Activations]:
    model.eval()
    groups = trace_groups(model, (IMAGES[:2],), **options).groups
    capture = ActivationCapture(model, groups, None, num_classes=3)
    capture.attach()
    capture.expect(LABELS)
    model(IMAGES)
    capture.detach()
    return {group.name: group for group in groups}, capture.finish()


def flops(model: nn.Module) -> int:
    counter = FlopCountAnalysis(model.eval(), torch.zeros(1, 1, 6, 6))
    return int(counter.unsupported_ops_warnings(False).total())


def test_contribution_is_the_power_read_times_the_weights_that_read_it() -> None:
    model = conv_net()
    groups, activations = captured(model)
    maps = model[:8](IMAGES).detach().double().reshape(18, 6, 9)
    weights = model.fc1.weight.detach().double().reshape(10, 6, 9)
    expected = (maps.square().mean((0, 2)) * weights.square().sum((0, 2))).sqrt()
    found = score_channels(model, groups["conv2"], activations)
    assert torch.allclose(found.contributions, expected / expected.mean(), rtol=1e-5)
    assert found.contributions.mean() == pytest.approx(1)


def test_magnitude_is_the_l1_norm_of_the_filter() -> None:
    model = conv_net()
    groups, activations = captured(model)
    for name in ("conv1", "fc1"):
        weight = model.get_submodule(name).weight.detach().double()
        found = score_channels(model, groups[name], activations)
        assert torch.allclose(found.magnitudes, weight.abs().flatten(1).sum(1))


def test_distances_are_between_separability_vectors() -> None:
    model = conv_net()
    groups, activations = captured(model)
    found = score_channels(model, groups["conv1"], activations)
    vectors = separability_vectors(activations.moments("conv1"))
    assert torch.allclose(found.distances, torch.cdist(vectors, vectors), atol=1e-6)
    assert found.separability is None
    ranked = score_channels(model, groups["conv1"], activations, SelectionConfig(criterion="mean_jm"))
    assert torch.allclose(ranked.separability, vectors.mean(1))


class Branches(nn.Module):
    """One layer read by two; two layers joined in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.left = nn.Conv2d(6, 5, 3, padding=1)
        self.right = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        return self.head((self.left(x) + self.right(x)).mean((2, 3)))


@pytest.mark.usefixtures("every_position")
def test_several_consumers_and_producers_add_up() -> None:
    torch.manual_seed(1)
    model = Branches()
    groups, activations = captured(model, residual=True)
    stem = score_channels(model, groups["stem"], activations)
    energy = model.stem(IMAGES).relu().detach().double().square().mean((0, 2, 3))
    norms = sum(
        layer.weight.detach().double().square().sum((0, 2, 3)) for layer in (model.left, model.right)
    )
    expected = (energy * norms).sqrt()
    assert torch.allclose(stem.contributions, expected / expected.mean(), rtol=1e-5)

    joint = score_channels(model, groups["left"], activations, SelectionConfig(criterion="mean_jm"))
    vectors = torch.cat(
        [separability_vectors(activations.moments(name)) for name in ("left", "right")], dim=1
    )
    assert torch.allclose(joint.distances, torch.cdist(vectors, vectors), atol=1e-6)
    assert torch.allclose(joint.separability, vectors.mean(1))
    sums = [layer.weight.detach().double().abs().sum((1, 2, 3)) for layer in (model.left, model.right)]
    assert torch.allclose(joint.magnitudes, sums[0] + sums[1])


def test_a_layer_that_contributes_nothing() -> None:
    model = conv_net()
    with torch.no_grad():
        model.fc2.weight.zero_()
    groups, activations = captured(model)
    assert score_channels(model, groups["fc1"], activations).contributions.tolist() == [1.0] * 10


def test_errors_name_the_layer() -> None:
    model = conv_net().eval()
    groups = trace_groups(model, (IMAGES[:2],)).groups
    capture = ActivationCapture(model, groups, None, num_classes=3)
    capture.attach()
    capture.expect(torch.zeros_like(LABELS))
    model(IMAGES)
    capture.detach()
    with pytest.raises(ValueError, match=r"Layer 'conv2': 1 of 3 classes were seen"):
        score_channels(model, groups[1], capture.finish())


@pytest.mark.parametrize(("minimum", "round_to"), [(2, 1), (3, 1), (2, 4), (5, 2), (100, 1)])
def test_what_is_in_reach_is_a_network_cut_as_far_as_it_may_be(minimum: int, round_to: int) -> None:
    model = conv_net().eval()
    groups = trace_groups(model, (IMAGES[:2],)).groups
    config = SelectionConfig(min_channels=minimum, flops=0.1)
    whole = measure_complexity(model, IMAGES[:1])
    width = -(-minimum // round_to) * round_to
    plan = build_plan(groups, {g.name: range(min(g.width, width)) for g in groups})
    apply_plan(model, plan)
    check_reachable(groups, config, round_to, whole, flops(model))
    with pytest.raises(ValueError, match=r"flops=0\.1 cannot be reached"):
        check_reachable(groups, config, round_to, whole, flops(model) - 1)


@pytest.mark.parametrize("curve", ["damage", "coverage", "mss"])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.7, 1.0])
def test_a_budget_is_met_by_the_network_that_comes_out(share: float, curve: Any) -> None:
    model = conv_net()
    groups, activations = captured(model)
    whole = flops(model)
    allocation = select_groups(
        model,
        tuple(groups.values()),
        activations,
        SelectionConfig(flops=share, curve=curve),
        layer_flops=measure_complexity(model, IMAGES[:1]).by_layer,
        budget=share * whole,
    )
    assert (allocation.network is None) is (curve != "damage")
    kept = {name: selection.kept.tolist() for name, selection in allocation.selections.items()}
    apply_plan(model, build_plan(tuple(groups.values()), kept))
    assert flops(model) <= share * whole
    if share == 1.0:
        assert flops(model) == whole


@pytest.mark.parametrize("curve", ["damage", "coverage"])
def test_a_budget_out_of_reach(curve: Any) -> None:
    model = conv_net()
    groups, activations = captured(model)
    with pytest.raises(ValueError, match=r"flops=0\.5 asks for at most 10 FLOPs, .* Raise flops"):
        select_groups(
            model,
            tuple(groups.values()),
            activations,
            SelectionConfig(flops=0.5, curve=curve),
            layer_flops=measure_complexity(model, IMAGES[:1]).by_layer,
            budget=10,
        )


def test_weighting_none_counts_all_channels_alike() -> None:
    model = conv_net()
    groups, activations = captured(model)
    for weighting, alike in (("none", True), ("contribution", False)):
        config = SelectionConfig(keep=0.5, weighting=weighting)
        found = select_groups(model, (groups["conv1"],), activations, config, layer_flops={})
        weights = found.selections["conv1"].weights
        assert bool((weights == weights[0]).all()) is alike
