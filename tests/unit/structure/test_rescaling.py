import copy
from functools import partial

import pytest
import torch
from helpers.normed import (
    Gained,
    GammaNorm,
    HandNorm,
    MapNorm,
    NormAct,
    Responses,
    RootNorm,
    Standardised,
)
from torch import nn

from acsp_lightning.structure.fitted import cut_layers
from acsp_lightning.structure.groups import Norm
from acsp_lightning.structure.lockstep import Lockstep
from acsp_lightning.structure.plan import PruningPlan, SideCut
from acsp_lightning.structure.rescaling import noted, rescaled
from acsp_lightning.structure.surgery import apply_plan

KEPT = (0, 3, 4, 6)
X = 2 + torch.randn(64, 8, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scaled(layer: nn.Module) -> nn.Module:
    model = nn.Sequential(layer).double()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("layer", "sides"),
    [
        (MapNorm(8), ["out"]),
        (nn.GroupNorm(1, 8), ["out"]),
        (HandNorm(8), ["weight:0", "bias:0"]),
        (GammaNorm(8), ["gamma:0", "beta:0"]),
        (Gained(8, 5, 3), ["in"]),
    ],
)
@torch.no_grad()
def test_channels_keep_mean_and_spread(layer: nn.Module, sides: list[str], shifted: bool) -> None:
    model = scaled(copy.deepcopy(layer))
    for name, parameter in model.named_parameters():
        if name in ("0.bias", "0.beta") and not shifted:
            parameter.zero_()
    side = sides[0]
    plan = PruningPlan(tuple(SideCut("0", side, 8, KEPT) for side in sides))
    with noted(model, [Norm("0", 1)]) as targets:
        whole = model(X)
    places = torch.tensor(KEPT)
    wanted = whole if side == "in" else whole[:, places]
    apply_plan(model, plan)
    given = X[:, places]
    cut = model(given)
    with rescaled(model, plan, targets):
        seen = model(given)
    found = model(given)
    assert torch.allclose(seen, found)
    dims = (0, 2, 3)
    assert torch.allclose(found.mean(dims), wanted.mean(dims))
    assert torch.allclose(found.std(dims), wanted.std(dims))
    assert not torch.allclose(cut.std(dims), wanted.std(dims), rtol=1e-3)


@torch.no_grad()
def test_a_scale_of_another_name_without_a_shift() -> None:
    model = scaled(RootNorm(8))
    plan = PruningPlan((SideCut("0", "gamma:0", 8, KEPT),))
    with noted(model, [Norm("0", 1)]) as targets:
        wanted = model(X)[:, list(KEPT)].square().mean((0, 2, 3))
    apply_plan(model, plan)
    with rescaled(model, plan, targets):
        model(X[:, list(KEPT)])
    assert torch.allclose(model(X[:, list(KEPT)]).square().mean((0, 2, 3)), wanted)


@torch.no_grad()
def test_a_layer_that_only_makes_fewer_channels_stays() -> None:
    """The filters that stay see what they saw."""
    model = scaled(Gained(8, 5, 3))
    plan = PruningPlan((SideCut("0", "out", 5, (0, 2)),))
    with noted(model, [Norm("0", 1)]) as targets:
        wanted = model(X)[:, [0, 2]]
    apply_plan(model, plan)
    with rescaled(model, plan, targets):
        assert torch.allclose(model(X), wanted)
    assert cut_layers(model, plan) == []


@torch.no_grad()
def test_without_a_shift_channels_keep_their_mean_square() -> None:
    model = scaled(nn.RMSNorm(8))
    rows = X.movedim(1, -1)
    plan = PruningPlan((SideCut("0", "out", 8, KEPT),))
    with noted(model, [Norm("0", -1)]) as targets:
        wanted = model(rows)[..., list(KEPT)].square().mean((0, 1, 2))
    apply_plan(model, plan)
    with rescaled(model, plan, targets):
        model(rows[..., list(KEPT)])
    assert torch.allclose(model(rows[..., list(KEPT)]).square().mean((0, 1, 2)), wanted)


@pytest.mark.parametrize(
    "layer", [Responses(8), Standardised(8, 5, 3), nn.LayerNorm(8, elementwise_affine=False)]
)
def test_layers_without_a_scale_have_no_target(layer: nn.Module) -> None:
    model = scaled(layer)
    x = X if isinstance(layer, Standardised) else X.movedim(1, -1)
    with noted(model, [Norm("0", 1 if isinstance(layer, Standardised) else -1)]) as targets:
        model(x)
    assert targets == {}


def test_an_activation_inside_hides_the_scale() -> None:
    model = scaled(NormAct(8))
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), noted(model, [Norm("0", 1)]) as targets:
        model(X - 2)
    assert targets == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_dead_channels_and_layers_that_are_not_cut_stay_as_they_are() -> None:
    model = scaled(MapNorm(8))
    model[0].weight[3] = 0
    with noted(model, [Norm("0", 1)]) as targets:
        model(X)
    apply_plan(model, plan := PruningPlan((SideCut("0", "out", 8, KEPT),)))
    with rescaled(model, plan, targets):
        model(X[:, list(KEPT)])
    assert model[0].weight[1] == 0
    assert model[0].weight.isfinite().all()
    before = model[0].weight.clone()
    with rescaled(model, PruningPlan(), targets):
        model(X[:, list(KEPT)])
    assert torch.equal(model[0].weight, before)


@torch.no_grad()
def test_targets_and_corrections_of_several_batches_are_those_of_one() -> None:
    """Of uneven batches, met as passes do: all tell before one settles."""
    places, parts = list(KEPT), X.split([40, 7, 17])
    plan = PruningPlan((SideCut("0", "out", 8, KEPT),))
    whole = scaled(MapNorm(8))
    batched = copy.deepcopy(whole)
    with noted(whole, [Norm("0", 1)]) as expected:
        whole(X)
    with noted(batched, [Norm("0", 1)]) as found:
        for part in parts:
            batched(part)
    for name in ("mean", "spread"):
        assert torch.allclose(getattr(found["0"], name), getattr(expected["0"], name))
    for model, targets, given in ((whole, expected, [X]), (batched, found, parts)):
        apply_plan(model, plan)
        passes = Lockstep(model, [partial(model, part[:, places]) for part in given], lambda: 0)
        with rescaled(model, plan, targets, passes.meet) as meetings:
            passes.run(meetings)
        assert all(passes.is_settled(place) for place in meetings)
    for one, other in zip(whole.parameters(), batched.parameters(), strict=True):
        assert torch.allclose(one, other)
