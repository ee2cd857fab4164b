import copy

import pytest
import torch
from helpers.networks import Wired
from helpers.oracle import assert_same_state, state
from torch import nn

from acsp_lightning import PruningPlan
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.plan import SideCut
from acsp_lightning.structure.pruning import prune


def hard_coded(check):
    def forward(net, x):
        return net.head(check(net.pool(torch.relu(net.norm(net.conv(x))))))

    return Wired(
        forward,
        conv=nn.Conv2d(3, 32, 3, padding=1),
        norm=nn.BatchNorm2d(32),
        pool=nn.MaxPool2d(2),
        head=nn.Linear(32 * 4 * 4, 5),
    )


def checked(x):
    assert x.shape[1] == 32, "not mine"
    return x.flatten(1)


def half_plan():
    kept = tuple(range(0, 32, 2))
    flat = tuple(p for p in range(512) if p // 16 in kept)
    return PruningPlan(
        (
            SideCut("conv", "out", 32, kept),
            SideCut("norm", "out", 32, kept),
            SideCut("head", "in", 512, flat),
        )
    )


@pytest.mark.parametrize(
    "check",
    [
        lambda x: x.view(-1, 32 * 4 * 4),
        lambda x: x.view(x.shape[0], 32, 16).flatten(1),
        checked,
    ],
)
def test_forward_that_counts_on_a_width_is_put_back(check):
    model = hard_coded(check)
    x = torch.randn(3, 3, 8, 8)
    model(x).sum().backward()
    model.norm.eval()
    before, expected = state(model), copy.deepcopy(model)(x)
    gradients = [id(p.grad) for p in model.parameters()]
    with pytest.raises(
        RuntimeError, match=r"(?s)Wired does not work after the cut of conv, norm.*put back"
    ):
        prune(model, half_plan(), (x,))
    assert_same_state(before, state(model))
    assert [id(p.grad) for p in model.parameters()] == gradients
    assert torch.equal(model(x), expected)


def test_outputs_of_another_shape_are_put_back():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    before = state(model)
    plan = PruningPlan((SideCut("0", "out", 8, (0, 1)),))
    with pytest.raises(RuntimeError, match=r"outputs of shape \[\(2, 2, 6, 6\)\]"):
        prune(model, plan, (torch.randn(2, 3, 8, 8),))
    assert_same_state(before, state(model))


def test_recovery_that_fails_is_put_back():
    model = hard_coded(lambda x: x.flatten(1))
    x = torch.randn(3, 3, 8, 8)
    before = state(model)
    conv = LayerSide("conv", "out", 32, tuple(range(32)), tuple(range(32)))
    head = LayerSide("head", "in", 512, tuple(range(512)), tuple(p // 16 for p in range(512)))
    group = ChannelGroup("conv", 32, (conv,), (), (head,), residual=False)
    moments = {"head": torch.full((32, 32), float("nan"))}
    with pytest.raises(RuntimeError, match="finite"):
        prune(model, half_plan(), (x,), groups=[group], input_moments=moments)
    assert_same_state(before, state(model))


def test_prune_cuts_what_works():
    model = hard_coded(lambda x: x.flatten(1))
    model.train()
    sliced = prune(model, half_plan(), (torch.randn(3, 3, 8, 8),))
    assert [entry.name for entry in sliced] == [
        "conv.weight", "conv.bias", "norm.weight", "norm.bias", "head.weight"
    ]  # fmt: skip
    assert all(model.get_parameter(entry.name) is entry.parameter for entry in sliced)
    assert model.training
    assert (model.conv.out_channels, model.norm.num_features, model.head.in_features) == (16, 16, 256)
