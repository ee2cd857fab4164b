from dataclasses import replace

import pytest
import torch
from helpers.networks import CUT, Wired
from helpers.oracle import built, inputs_of, portrait
from torch import nn

from acsp_lightning.structure.forward import run_forward
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.structure.trial import Difference, trial_difference


def tried(model, inputs, groups, training=None):
    with torch.no_grad():
        return trial_difference(model, groups, lambda: run_forward(model, inputs), training)


def rotated(group: ChannelGroup) -> ChannelGroup:
    """The consumer believes that every channel lies one position further."""
    side = group.consumers[0]
    wrong = replace(side, channels=(*side.channels[1:], side.channels[0]))
    return replace(group, consumers=(wrong, *group.consumers[1:]))


@pytest.fixture
def chain():
    """Four convolutions and the three groups between them."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 9, 3), nn.Conv2d(9, 10, 3), nn.Conv2d(10, 4, 3)]
    model = nn.Sequential(*layers).eval()
    inputs = (torch.randn(2, 3, 12, 12),)
    return model, inputs, trace_groups(model, inputs).groups


def test_no_difference(chain) -> None:
    model, inputs, groups = chain
    before = portrait(model)
    assert tried(model, inputs, groups) is None
    assert tried(model, inputs, ()) is None
    assert portrait(model) == before


@pytest.mark.parametrize("wrong", [[0], [1], [2], [0, 1], [0, 2], [0, 1, 2]])
def test_a_difference_shows_at_the_layers_to_blame_and_at_no_others(chain, wrong: list[int]) -> None:
    """Those behind a wrong layer are judged by themselves."""
    model, inputs, groups = chain
    groups = [rotated(group) if n in wrong else group for n, group in enumerate(groups)]
    found = tried(model, inputs, groups)
    assert found.layers == tuple(str(n + 1) for n in wrong)
    assert found.reason.startswith(f"'{wrong[0] + 1}' does not compute the same")


def test_where_forward_ends_with_an_error_all_layers_behind_are_in_doubt(chain) -> None:
    model, inputs, groups = chain
    too_wide = replace(groups[1], passthrough=(), producers=groups[1].producers, consumers=())
    found = tried(model, inputs, [groups[0], too_wide, groups[2]])
    assert "forward fails after a cut (RuntimeError" in found.reason
    assert found.layers == ("3",)


def test_layers_that_are_no_longer_called_are_named() -> None:
    def forward(net, x):
        x = net.a(x)
        return net.b(x) if x.shape[1] == 8 else x[:, :4].contiguous()

    model = Wired(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    inputs = (torch.randn(2, 3, 6, 6),)
    assert tried(model, inputs, trace_groups(model, inputs).groups) == Difference(
        "forward does not call 'b' after a cut", ("b",)
    )


def test_what_the_channels_do_behind_their_consumers_back_is_seen() -> None:
    model = Wired(
        lambda net, x: net.b(net.a(x)) + net.a.out_channels,
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 4, 1),
    )
    inputs = (torch.randn(2, 3, 6, 6),)
    found = tried(model, inputs, trace_groups(model, inputs).groups)
    assert found == Difference("the network's output is not the same from the channels that are kept")


def test_training_runs_once_on_the_cut_network(chain) -> None:
    model, inputs, groups = chain
    widths = []
    assert tried(model, inputs, groups, lambda: widths.append(model[0].out_channels)) is None
    assert len(widths) == 1
    assert widths[0] < 8

    def fails() -> None:
        raise ValueError("unequal")

    assert "fails after a cut (ValueError: unequal)" in tried(model, inputs, groups, fails).reason


def test_in_place_activations_behind_a_consumer_do_not_change_what_it_made() -> None:
    """A rectified output would hide the half of it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.ReLU(inplace=True)).eval()
    with torch.no_grad():
        model[1].bias.fill_(-100.0)
    inputs = (torch.randn(2, 3, 6, 6),)
    group = rotated(trace_groups(model, inputs).groups[0])
    with torch.no_grad():
        model[1].weight.mul_(30.0)
    assert tried(model, inputs, [group]).layers == ("1",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_outputs_masked_with_infinities_are_compared_where_they_are_finite(
    dtype: torch.dtype, value: float
) -> None:
    def forward(net, x):
        return net.b(net.a(x)).masked_fill(x[:, :1] > 1, value)

    model = Wired(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)).to(dtype)
    inputs = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype),)
    groups = trace_groups(model, inputs).groups
    assert tried(model, inputs, groups) is None
    assert tried(model, inputs, [rotated(groups[0])]) is not None


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_networks_of_the_house(name: str) -> None:
    case = CUT[name]
    model, inputs = built(case), inputs_of(case)
    groups = trace_groups(model, inputs, residual=case.residual).groups
    assert tried(model, inputs, groups) is None
    assert all(tried(model, inputs, [rotated(group)]) is not None for group in groups)
