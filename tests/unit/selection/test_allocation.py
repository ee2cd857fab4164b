"""Budgets against networks that were really cut."""

from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers.captured import IMAGES, captured
from helpers.fits import conv_net
from torch import nn

from acsp_lightning import SelectionConfig, apply_plan, measure_complexity
from acsp_lightning.functional import select_channels
from acsp_lightning.selection.allocation import check_reachable, halved_widths, select_groups
from acsp_lightning.selection.weighing import weigh_groups
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups


def flops(model: nn.Module) -> int:
    counter = FlopCountAnalysis(model.eval(), torch.zeros(1, 1, 6, 6))
    return int(counter.unsupported_ops_warnings(False).total())


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
    config = SelectionConfig(flops=share, curve=curve)
    allocation = select_groups(
        tuple(groups.values()),
        weigh_groups(model, tuple(groups.values()), activations, config),
        config,
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
    config = SelectionConfig(flops=0.5, curve=curve)
    weighed = weigh_groups(model, tuple(groups.values()), activations, config)
    with pytest.raises(ValueError, match=r"flops=0\.5 asks for at most 10 FLOPs, .* Raise flops"):
        select_groups(
            tuple(groups.values()),
            weighed,
            config,
            layer_flops=measure_complexity(model, IMAGES[:1]).by_layer,
            budget=10,
        )


def test_weighting_none_counts_all_channels_alike() -> None:
    model = conv_net()
    groups, activations = captured(model)
    for weighting, alike in (("none", True), ("contribution", False)):
        config = SelectionConfig(keep=0.5, weighting=weighting)
        weighed = weigh_groups(model, (groups["conv1"],), activations, config)
        found = select_groups((groups["conv1"],), weighed, config, layer_flops={})
        weights = found.selections["conv1"].weights
        assert bool((weights == weights[0]).all()) is alike


@pytest.mark.parametrize(
    ("kept", "round_to", "expected"),
    [(4, 1, 6), (5, 1, 7), (2, 1, 5), (7, 1, None), (8, 1, None), (4, 4, None), (2, 3, 6), (2, 8, None)],
)
def test_half_the_depth(kept: int, round_to: int, expected: int | None) -> None:
    points = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    chosen = select_channels(torch.cdist(points, points), SelectionConfig(), k=kept)
    assert halved_widths({"layer": chosen}, round_to) == ({"layer": expected} if expected else {})
