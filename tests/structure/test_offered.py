import pytest
import torch
from networks import CUT, Wired, plain, residual, squeeze_excitation
from oracle import built, inputs_of, offered
from torch import nn
from torch.nn import functional

from acsp_lightning.structure.tracing import trace_groups

X = (torch.randn(2, 3, 8, 8),)


def names(model, **options):
    return [group.name for group in offered(model, X, **options).groups]


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
    assert "output" in tracing.left_whole["b"]


def test_order_is_that_of_execution_not_of_definition():
    layers = {"z": nn.Conv2d(3, 6, 3), "y": nn.Conv2d(6, 8, 1), "x": nn.Linear(8, 4)}
    model = Wired(
        lambda net, v: net.x(net.y(net.z(v)).mean((2, 3))),
        **dict(sorted(layers.items())),
    )
    assert list(dict(model.named_children())) == ["x", "y", "z"]
    assert names(model) == ["z", "y"]


def test_streams_are_offered_on_request_only():
    assert names(residual()) == ["1.conv1", "2.conv1"]
    stream = {g.name: g for g in offered(residual(), X, residual=True).groups}
    assert [side.layer for side in stream["0"].producers] == ["0", "1.conv2"]
    assert [side.layer for side in stream["2.conv2"].producers] == ["2.conv2", "2.shortcut.0"]
    assert [side.layer for side in stream["0"].consumers] == ["1.conv1", "2.conv1", "2.shortcut.0"]
    assert [g.residual for g in stream.values()] == [True, False, False, True]


def test_gates_belong_to_what_they_gate():
    groups = {g.name: g for g in offered(squeeze_excitation(), X).groups}
    assert [side.layer for side in groups["conv"].producers] == ["conv", "fc2"]
    assert not groups["conv"].residual


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["3"]}, ["3"]),
        ({"include": ["[03]", "7"]}, ["0", "3", "7"]),
        ({"exclude": ["3"]}, ["0", "7"]),
        ({"include": ["*"], "exclude": ["*"]}, []),
    ],
)
def test_patterns_choose_layers(options, expected):
    assert names(plain(), **options) == expected


def test_a_stream_goes_by_any_of_its_layers():
    assert names(residual(), residual=True, include=["1.conv2"]) == ["0"]
    assert "0" not in names(residual(), residual=True, exclude=["1.conv2"])


def test_left_whole_names_only_what_was_asked_for():
    model = Wired(
        lambda net, x: net.c(net.b(net.a(x))).mean((2, 3)),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 8, 3, groups=2),
        c=nn.Conv2d(8, 4, 1),
    )
    assert set(offered(model, X).left_whole) == {"a", "b"}
    assert set(offered(model, X, exclude=["b"]).left_whole) == {"a"}


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_unknown_patterns_suggest_the_nearest_name(argument):
    with pytest.raises(ValueError, match=rf"{argument} has '1\.covn1'.*nearest is '1\.conv1'"):
        trace_groups(residual(), X, **{argument: ["1.covn1"]})


def test_patterns_name_layers_that_make_channels():
    with pytest.raises(ValueError, match="'1', which matches no"):
        trace_groups(plain(), X, include=["1"])  # a BatchNorm


def test_a_single_channel_is_not_offered():
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1))
    assert names(model) == ["1"]


def test_layers_behind_no_grad_are_named():
    def forward(net, x):
        with torch.no_grad():
            x = net.b(net.a(x))
        return net.d(net.c(x))

    model = Wired(
        forward,
        a=nn.Conv2d(3, 6, 3),
        b=nn.Conv2d(6, 6, 3),
        c=nn.Conv2d(6, 5, 3),
        d=nn.Conv2d(5, 2, 1),
    )
    tracing = offered(model, X)
    assert [group.name for group in tracing.groups] == ["c"]
    assert set(tracing.left_whole) == {"a", "b"}


def test_concatenated_flattened_maps_are_left_whole():
    def forward(net, x):
        x = net.a(x)
        flat = functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return net.out(torch.cat([flat, net.b(x).mean((2, 3))], 1))

    model = Wired(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 8, 3), out=nn.Linear(6 * 4 + 8, 4))
    tracing = offered(model, X)
    assert tracing.groups == ()
    assert "a" in tracing.left_whole
