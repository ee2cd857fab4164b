import copy

import numpy as np
import pytest
import torch
from helpers.networks import Wired, randomized
from helpers.oracle import offered
from torch import nn
from torch.nn import functional

from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.pruning import prune

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def conv_consumer():
    return Wired(
        lambda net, x: net.out(functional.relu(net.norm(net.a(x)))).mean((2, 3)),
        a=nn.Conv2d(3, 8, 3),
        norm=nn.BatchNorm2d(8),
        out=nn.Conv2d(8, 4, 3),
    )


def transposed_consumer():
    return Wired(
        lambda net, x: net.out(functional.relu(net.a(x))),
        a=nn.Conv2d(3, 8, 3),
        out=nn.ConvTranspose2d(8, 4, 2, stride=2),
    )


def linear_consumer():
    return Wired(
        lambda net, x: net.out(functional.relu(net.a(x)).flatten(1)),
        a=nn.Conv2d(3, 8, 5),
        out=nn.Linear(8 * 16, 4),
    )


def concatenation():
    def forward(net, x):
        return net.out(torch.cat([functional.relu(net.a(x)), torch.tanh(net.b(x))], 1))

    return Wired(
        forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(3, 5, 3), out=nn.Conv2d(11, 4, 1, bias=False)
    )


def chain():
    """The middle layer loses outputs as well as inputs."""
    return Wired(
        lambda net, x: net.out(net.b(functional.relu(net.a(x)))).mean((2, 3)),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 6, 3),
        out=nn.Conv2d(6, 4, 1),
    )


# name: (network, channels kept by group, consumer read, features of one channel)
CASES = {
    "conv": (conv_consumer, {"a": [0, 2, 3, 6]}, 1),
    "transposed": (transposed_consumer, {"a": [1, 2, 5]}, 1),
    "linear": (linear_consumer, {"a": [0, 3, 4, 7]}, 16),
    "concatenation": (concatenation, {"a": [0, 1, 5], "b": [2, 3]}, 1),
}


def input_of(model, layer):
    """What a layer is given on X, by a hook of the test's own."""
    seen = []
    handle = model.get_submodule(layer).register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0])
    )
    with torch.no_grad():
        model(X)
    handle.remove()
    return seen[0]


def samples_of(model, layer, spread=1):
    """(samples, channels) that a layer sees, every position a sample."""
    channels = input_of(model, layer).movedim(1, 0)
    return channels.reshape(len(channels) // spread, -1).T


def moments_of(model, layer, spread=1):
    rows = samples_of(model, layer, spread)
    return rows.T @ rows / len(rows)


def recovered(model, groups, kept, moments):
    cut = copy.deepcopy(model)
    prune(cut, build_plan(groups, kept), (X,), groups=groups, input_moments=moments)
    return cut


@pytest.mark.parametrize("name", CASES)
def test_consumer_gets_what_least_squares_on_the_activations_gives(name):
    build, kept, spread = CASES[name]
    torch.manual_seed(0)
    model = randomized(build())
    groups = offered(model, (X,)).groups
    cut = recovered(model, groups, kept, {"out": moments_of(model, "out", spread)})

    rows = samples_of(model, "out", spread)
    offsets = {"a": 0, "b": 6}
    columns = [offsets[g] + channel for g, channels in kept.items() for channel in channels]
    best = np.linalg.lstsq(rows[:, columns].numpy(), rows.numpy(), rcond=None)[0]
    rebuilt = torch.from_numpy(rows[:, columns].numpy() @ best)
    inputs = input_of(model, "out")
    shape = inputs.movedim(1, 0).shape
    rebuilt = rebuilt.T.reshape(shape).movedim(0, 1)
    with torch.no_grad():
        expected = model.out(rebuilt)  # the whole consumer on the best reconstruction
        found = cut.out(input_of(cut, "out"))
        whole = model.out(inputs)
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert (found - whole).norm() > 1e-2 * whole.norm()  # so that the bound above says something


def test_a_layer_cut_on_both_sides():
    torch.manual_seed(0)
    model = randomized(chain())
    groups = offered(model, (X,)).groups
    moments = {layer: moments_of(model, layer) for layer in ("b", "out")}
    kept = {"a": [0, 2, 3, 5, 7], "b": [1, 4, 5]}
    both = recovered(model, groups, kept, moments)
    only_inputs = recovered(model, groups, {"a": kept["a"]}, moments)
    torch.testing.assert_close(both.b.weight, only_inputs.b.weight[kept["b"]])


def duplicated(model, kept):
    """Let every channel that is dropped be twice a channel that stays."""
    with torch.no_grad():
        for group, channels in kept.items():
            layer = model.get_submodule(group)
            for channel in set(range(layer.out_channels)) - set(channels):
                layer.weight[channel] = 2 * layer.weight[channels[0]]
                layer.bias[channel] = 2 * layer.bias[channels[0]]
    return model


@pytest.mark.parametrize("name", ["transposed", "linear", "concatenation"])
def test_duplicates_cost_nothing(name):
    build, kept, spread = CASES[name]
    torch.manual_seed(0)
    if name == "concatenation":  # tanh is not homogeneous
        kept = {"a": kept["a"]}
    model = duplicated(randomized(build()), kept)
    groups = offered(model, (X,)).groups
    cut = recovered(model, groups, kept, {"out": moments_of(model, "out", spread)})
    bare = recovered(model, groups, kept, None)
    with torch.no_grad():
        whole = model(X)
        assert (cut(X) - whole).norm() < 1e-4 * whole.norm()
        assert (bare(X) - whole).norm() > 1e-2 * whole.norm()


def test_names_dtype_and_flags_survive_recovery():
    torch.manual_seed(0)
    model = randomized(linear_consumer()).float()
    model.out.weight.requires_grad_(False)
    model.out.weight.mark = "mine"
    x = X.float()
    groups = offered(model, (x,)).groups
    moments = {"out": moments_of(copy.deepcopy(model).double(), "out", 16)}
    prune(model, build_plan(groups, {"a": [1, 2]}), (x,), groups=groups, input_moments=moments)
    assert model.out.weight.dtype == torch.float32
    assert not model.out.weight.requires_grad
    assert model.out.weight.mark == "mine"
    assert model.out.weight.shape == (4, 2 * 16)
