import pytest
import torch
from helpers.networks import CUT, Wired
from helpers.oracle import assert_cut_is_masked, built, inputs_of, offered, random_plan
from helpers.structures import STRUCTURES
from torch import nn
from torch.nn import functional

from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.following import follow
from acsp_lightning.structure.grouping import bundles
from acsp_lightning.structure.tracing import trace_groups

X = (torch.randn(2, 3, 8, 8),)


@pytest.mark.parametrize("name", CUT)
def test_every_producer_of_the_output_stays(name):
    """Cutting all groups to one channel leaves the shape of the output."""
    case = CUT[name]
    model, inputs = built(case), inputs_of(case)
    last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    groups = offered(model, inputs, residual=case.residual).groups
    assert groups
    assert last not in {side.layer for g in groups for side in g.sides if side.side == "out"}


def two_outputs(second):
    def forward(net, x):
        hidden = net.b(functional.relu(net.a(x)))
        return net.head(hidden.mean((2, 3))), second(hidden)

    return Wired(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 8, 3), head=nn.Linear(8, 4))


@pytest.mark.parametrize(
    "second",
    [
        lambda h: h,
        lambda h: h.relu(),
        lambda h: h.flatten(1),
        lambda h: h.mean(1),
        lambda h: h.detach(),
        lambda h: h.detach().mean(1),
        lambda h: {"deep": [h.mean((2, 3))]},
    ],
)
def test_channels_that_leave_as_a_second_output_stay(second):
    tracing = offered(two_outputs(second), X)
    assert [group.name for group in tracing.groups] == ["a"]
    assert any(word in tracing.left_whole["b"] for word in ("output", "mean"))


def test_left_whole_names_only_what_was_asked_for():
    model = Wired(
        lambda net, x: net.c(net.b(net.a(x).softmax(1)).cumsum(1)).mean((2, 3)),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 8, 3),
        c=nn.Conv2d(8, 4, 1),
    )
    assert set(trace_groups(model, X).left_whole) == {"a", "b"}
    assert set(trace_groups(model, X, exclude=["b"]).left_whole) == {"a"}


def test_layers_behind_no_grad_and_detached_ones_are_cut():
    def forward(net, x):
        with torch.no_grad():
            x = net.b(net.a(x))
        return net.d(net.c(x.detach()))

    model = Wired(
        forward,
        a=nn.Conv2d(3, 6, 3),
        b=nn.Conv2d(6, 6, 3),
        c=nn.Conv2d(6, 5, 3),
        d=nn.Conv2d(5, 2, 1),
    )
    tracing = offered(model, X)
    assert [group.name for group in tracing.groups] == ["a", "b", "c"]
    assert tracing.left_whole == {}


def test_groups_of_one_layer_have_names_of_their_own():
    case = STRUCTURES["split by an attribute"]
    found = bundles_of(built(case), inputs_of(case))
    assert [bundle.layers[0] for bundle in found if bundle.group].count("body.before") == 2


def bundles_of(model, inputs):
    with evaluation_state(model):
        found, calls = follow(model, inputs)
        return bundles(found, model, list(calls))


def test_a_parameter_is_cut_along_one_dimension_or_named():
    model = Wired(lambda net, x: net.b(net.a(x) * net.a.bias.view(-1, 1, 1)), a=nn.Conv2d(3, 8, 1),
                  b=nn.Conv2d(8, 2, 1))  # fmt: skip
    assert "reads it past its layer" in trace_groups(model, X).left_whole["a"]


def test_numbers_and_parameters_are_sides():
    case = STRUCTURES["grown"]
    sides = {
        (side.layer, side.side)
        for group in offered(built(case), inputs_of(case), residual=True).groups
        for side in group.passthrough
    }
    assert sides == {("body", "=inputs")}


class Heads(nn.Module):
    """Tokens by heads, with a scale of some shape between the view and the sum over heads."""

    def __init__(self, *shape: int, merged: bool = False) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(7, 12), nn.Linear(12, 5)
        self.scale, self.merged = nn.Parameter(torch.rand(shape)), merged

    def forward(self, x):
        batch, tokens = x.shape[:2]
        y = self.fc(x)
        if self.merged:
            y = y.view(batch, tokens, 4, -1).flatten(0, 1) * self.scale
        else:
            y = y.view(batch, tokens, 4, y.shape[-1] // 4) * self.scale
        return self.out(y.reshape(batch, tokens, -1))


@pytest.mark.parametrize(
    ("shape", "side"),
    [((3,), "scale:0"), ((1, 3), "scale:1"), ((4, 3), "scale:1"), ((4, 1), None), ((1,), None)],
)
@pytest.mark.parametrize("merged", [False, True])
def test_a_parameter_over_a_part_of_a_view_is_cut_along(shape, side, merged):
    torch.manual_seed(0)
    model, inputs = Heads(*shape, merged=merged).double().eval(), (torch.rand(2, 6, 7).double(),)
    (group,) = offered(model, inputs).groups
    assert group.width == 3
    assert [part.side for part in group.passthrough] == ([side] if side else [])
    assert_cut_is_masked(model, random_plan([group], seed=0), inputs)
