"""Small networks, one per structure, and what must be cut or left whole in each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from acsp_lightning.zoo import ResNet


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    cut: tuple[str, ...]
    whole: dict[str, str] | None = None  # name of a group -> a part of the reason
    residual: bool = False
    norms: str = "exact"


class Wired(nn.Module):
    """Layers given by name, and a forward given as a function of them and the input."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.wiring = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.wiring(self, *inputs)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, biases and normalisation statistics that are neither 0 nor 1, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if name.endswith("running_var"):
            noise = 0.5 + noise.abs()
        elif tensor.ndim > 1:
            noise = noise / tensor[0].numel() ** 0.5
        tensor.data.copy_(noise)
    return model


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 10, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


def flatten():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, bias=True),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(5 * 4 * 4, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


def flatten_norm():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Flatten(), nn.BatchNorm1d(5 * 36), nn.PReLU(), nn.Linear(5 * 36, 4)
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return functional.relu(out)


class PreActivation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width + 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width + 2)
        self.conv2 = nn.Conv2d(width + 2, width, 3, padding=1, bias=False)

    def forward(self, x):
        out = self.conv1(functional.relu(self.bn1(x)))
        return x + self.conv2(functional.relu(self.bn2(out)))


def residual():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        BasicBlock(6, 6),
        BasicBlock(6, 9, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(9, 4),
    )


def preactivation():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        PreActivation(6),
        PreActivation(6),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


class Inverted(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.expand = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.reduce = nn.Conv2d(inner, 3, 1)
        self.gate = nn.Conv2d(3, inner, 1)
        self.project = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x):
        out = functional.relu6(self.bn1(self.expand(x)))
        out = functional.relu6(self.bn2(self.depthwise(out)))
        scale = functional.relu(self.reduce(out.mean((2, 3), keepdim=True)))
        return x + self.project(out * torch.sigmoid(self.gate(scale)))


def inverted():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        Inverted(6, 10),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def squeeze_excitation():
    def forward(net, x):
        x = functional.relu(net.conv(x))
        scale = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        scale = torch.sigmoid(net.fc2(functional.relu(net.fc1(scale))))
        x = x * scale[:, :, None, None]
        return net.head(net.conv2(x).mean((2, 3)))

    return Wired(
        forward,
        conv=nn.Conv2d(3, 8, 3),
        fc1=nn.Linear(8, 4),
        fc2=nn.Linear(4, 8),
        conv2=nn.Conv2d(8, 6, 3),
        head=nn.Linear(6, 4),
    )


def dense():
    def forward(net, x):
        x = net.stem(x)
        x = torch.cat([x, net.a(functional.relu(net.norm_a(x)))], 1)
        x = torch.cat([x, net.b(functional.relu(net.norm_b(x)))], 1)
        return net.head(functional.relu(net.norm(x)).mean((2, 3)))

    return Wired(
        forward,
        stem=nn.Conv2d(3, 6, 3, padding=1),
        norm_a=nn.BatchNorm2d(6),
        a=nn.Conv2d(6, 4, 3, padding=1, bias=False),
        norm_b=nn.BatchNorm2d(10),
        b=nn.Conv2d(10, 5, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(15),
        head=nn.Linear(15, 4),
    )


def inception():
    def forward(net, x):
        x = torch.cat([net.a(x), functional.relu(net.b2(net.b1(x))), net.c(x)], dim=1)
        return net.head(net.merge(net.norm(x)).flatten(1))

    return Wired(
        forward,
        a=nn.Conv2d(3, 4, 1),
        b1=nn.Conv2d(3, 6, 3, padding=1),
        b2=nn.Conv2d(6, 5, 3, padding=1),
        c=nn.Conv2d(3, 3, 5, padding=2),
        norm=nn.BatchNorm2d(12),
        merge=nn.Conv2d(12, 6, 3, stride=2),
        head=nn.Linear(6 * 9, 4),
    )


def twice_concatenated():
    return Wired(
        lambda net, x: net.head(net.next(torch.cat([net.conv(x)] * 2, 1)).mean((2, 3))),
        conv=nn.Conv2d(3, 6, 3),
        next=nn.Conv2d(12, 7, 3),
        head=nn.Linear(7, 4),
    )


def one_dimensional():
    return nn.Sequential(
        nn.Conv1d(3, 6, 3),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Conv1d(6, 8, 3, dilation=2),
        nn.PReLU(8),
        nn.Flatten(),
        nn.Linear(8 * 6, 4),
    )


def three_dimensional():
    return nn.Sequential(
        nn.Conv3d(2, 6, 3),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.Conv3d(6, 5, 2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


def transposed():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ConvTranspose2d(6, 8, 2, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8),
        nn.ConvTranspose2d(8, 5, 3, bias=False),
        nn.Conv2d(5, 3, 1),
    )


def perceptron():
    return nn.Sequential(
        nn.Linear(7, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 8), nn.PReLU(8), nn.Linear(8, 4)
    )


def tokens():
    return nn.Sequential(nn.Linear(7, 10), nn.GELU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))


def norms():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, affine=False),
        nn.Conv2d(6, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.GroupNorm(6, 6),
        nn.PReLU(6),
        nn.Conv2d(6, 9, 1),
        nn.GroupNorm(9, 9, affine=False),
        nn.PReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 4),
    )


STREAM = ("0", "1.conv1", "2.conv1", "2.conv2")

CUT = {
    "plain": Case(plain, (3, 8, 8), ("0", "3", "7")),
    "flatten": Case(flatten, (3, 8, 8), ("0", "2", "5")),
    "flatten_norm": Case(flatten_norm, (3, 8, 8), ("0",)),
    "residual": Case(residual, (3, 8, 8), ("1.conv1", "2.conv1")),
    "residual_stream": Case(residual, (3, 8, 8), STREAM, residual=True),
    "preactivation": Case(preactivation, (3, 8, 8), ("1.conv1", "2.conv1")),
    "preactivation_stream": Case(preactivation, (3, 8, 8), ("0", "1.conv1", "2.conv1"), residual=True),
    "inverted": Case(inverted, (3, 8, 8), ("1.expand", "1.reduce")),
    "inverted_stream": Case(inverted, (3, 8, 8), ("0", "1.expand", "1.reduce"), residual=True),
    "squeeze_excitation": Case(squeeze_excitation, (3, 8, 8), ("conv", "fc1", "conv2")),
    "dense": Case(dense, (3, 8, 8), ("stem", "a", "b")),
    "inception": Case(inception, (3, 8, 8), ("a", "b1", "b2", "c", "merge")),
    "twice_concatenated": Case(twice_concatenated, (3, 8, 8), ("conv", "next")),
    "one_dimensional": Case(one_dimensional, (3, 12), ("0", "3")),
    "three_dimensional": Case(three_dimensional, (2, 6, 6, 6), ("0", "3")),
    "transposed": Case(transposed, (3, 8, 8), ("0", "1", "5")),
    "perceptron": Case(perceptron, (7,), ("0", "3")),
    "tokens": Case(tokens, (5, 7), ("0", "2")),
    "norms": Case(norms, (3, 8, 8), ("0", "2", "5", "8")),
}


def between(middle, **layers):
    """conv "a" -> ``middle(net, x)`` -> conv "b" -> conv "c" -> head; b and c are plain."""

    def forward(net, x):
        x = middle(net, functional.relu(net.a(x)))
        return net.head(net.c(functional.relu(net.b(x))).mean((2, 3)))

    own = {
        "a": nn.Conv2d(3, 8, 3),
        "b": nn.Conv2d(8, 6, 3),
        "c": nn.Conv2d(6, 8, 1),
        "head": nn.Linear(8, 4),
    }
    return Wired(forward, **{**own, **layers})


def cross_stage(net, x):
    """A residual sum over one half of the channels, concatenated with the other half."""
    first, second = x.chunk(2, 1)
    return torch.cat([first + net.inner(first), second], 1)


def shuffled(_net, x):
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


def with_weight_norm_hooks(layer):
    # The old API warns that it is deprecated; networks that use it still exist.
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


def tied():
    net = between(lambda net, x: net.a2(x), a2=nn.Conv2d(8, 8, 3, padding=1), c=nn.Conv2d(6, 8, 1))
    net.add_module("a3", nn.Conv2d(8, 8, 3, padding=1))
    net.a3.weight = net.a2.weight
    net.wiring = lambda net, x: net.head(net.c(net.b(net.a3(net.a2(net.a(x))))).mean((2, 3)))
    return net


def sequence(reader):
    """conv -> time steps -> ``reader`` -> head, with a plain branch beside it."""

    def forward(net, x):
        steps = net.a(x).flatten(2).transpose(1, 2)
        return net.head(net.read(steps)) + net.out(functional.relu(net.side(x)).mean((2, 3)))

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = reader

        def forward(self, steps):
            if isinstance(self.inner, nn.MultiheadAttention):
                return self.inner(steps, steps, steps)[0].mean(1)
            return self.inner(steps)[0][:, -1]

    return Wired(
        forward,
        a=nn.Conv2d(3, 8, 3),
        read=First(),
        side=nn.Conv2d(3, 6, 3),
        head=nn.Linear(8, 4),
        out=nn.Linear(6, 4),
    )


def channels_last_flatten():
    return Wired(
        lambda net, x: net.head(functional.relu(net.b(net.a(x).permute(0, 2, 3, 1).flatten(1)))),
        a=nn.Conv2d(3, 6, 3),
        b=nn.Linear(6 * 36, 5),
        head=nn.Linear(5, 4),
    )


def sliced(where):
    def forward(net, x):
        x = net.a(x)
        return net.head((net.b(x) + net.c(x[:, where])).mean((2, 3)))

    return Wired(
        forward,
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 6, 3),
        c=nn.Conv2d(len(range(*where.indices(8))), 6, 3),
        head=nn.Linear(6, 4),
    )


class Auxiliary(nn.Module):
    """A second classifier that runs only in train mode, as in GoogLeNet."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 4)
        self.aux = nn.Sequential(
            nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 4)
        )

    def forward(self, x):
        x = functional.relu(self.a(x))
        out = self.head(functional.relu(self.b(x)).mean((2, 3)))
        return (out, self.aux(x)) if self.training else out


def functional_use():
    return between(
        lambda net, x: functional.conv2d(x, net.extra.weight), extra=nn.Conv2d(8, 8, 1, bias=False)
    )


A = {"a": ""}
WHOLE = {
    "tied": Case(tied, (3, 8, 8), ("b", "c"), {"a": "tied", "a2": "tied", "a3": "tied"}),
    "called_twice": Case(
        partial(between, lambda net, x: net.g(net.g(x)), g=nn.Conv2d(8, 8, 1)),
        (3, 8, 8),
        ("b", "c"),
        {"a": "2 times"},
    ),
    "weight_norm": Case(
        lambda: between(lambda net, x: net.g(x), g=parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
        (3, 8, 8),
        ("b", "c"),
        {"a": "parametrization", "g": "parametrization"},
    ),
    "weight_norm_hooks": Case(
        lambda: between(lambda net, x: net.g(x), g=with_weight_norm_hooks(nn.Conv2d(8, 8, 1))),
        (3, 8, 8),
        ("b", "c"),
        {"a": "weight norm", "g": "weight norm"},
    ),
    "spectral_norm": Case(
        lambda: between(lambda net, x: net.g(x), g=parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))),
        (3, 8, 8),
        ("b", "c"),
        {"a": "parametrization", "g": "parametrization"},
    ),
    "spectral_norm_hooks": Case(
        lambda: between(lambda net, x: net.g(x), g=nn.utils.spectral_norm(nn.Conv2d(8, 8, 1))),
        (3, 8, 8),
        ("b", "c"),
        {"a": "computed", "g": "computed"},
    ),
    "instance_norm": Case(
        partial(between, lambda net, x: net.n(x), n=nn.InstanceNorm2d(8, track_running_stats=True)),
        (3, 8, 8),
        ("b", "c"),
        {"a": "running statistics"},
    ),
    "group_norm_of_one": Case(
        partial(between, lambda net, x: net.n(x), n=nn.GroupNorm(1, 8)),
        (3, 8, 8),
        ("b", "c"),
        {"a": "GroupNorm"},
    ),
    "group_norm_function": Case(
        partial(between, lambda net, x: functional.group_norm(x, 2)), (3, 8, 8), ("b", "c"), A
    ),
    "layer_norm": Case(
        partial(
            between,
            lambda net, x: net.n(x.movedim(1, -1)).movedim(-1, 1),
            n=nn.LayerNorm(8),
        ),
        (3, 8, 8),
        ("b", "c"),
        {"a": "LayerNorm"},
    ),
    "lstm": Case(lambda: sequence(nn.LSTM(8, 8, batch_first=True)), (3, 8, 8), ("side",), A),
    "gru": Case(lambda: sequence(nn.GRU(8, 8, batch_first=True)), (3, 8, 8), ("side",), A),
    "attention": Case(
        lambda: sequence(nn.MultiheadAttention(8, 2, batch_first=True)), (3, 8, 8), ("side",), A
    ),
    "functional_use": Case(functional_use, (3, 8, 8), ("b", "c"), A),
    "roll": Case(partial(between, lambda net, x: x.roll(1, 1)), (3, 8, 8), ("b", "c"), A),
    "channels_last_flatten": Case(channels_last_flatten, (3, 8, 8), ("b",), A),
    "softmax": Case(partial(between, lambda net, x: x.softmax(1)), (3, 8, 8), ("b", "c"), A),
    "mean": Case(partial(between, lambda net, x: x - x.mean(1, keepdim=True)), (3, 8, 8), ("b", "c"), A),
    "normalize": Case(
        partial(between, lambda net, x: functional.normalize(x, dim=1)), (3, 8, 8), ("b", "c"), A
    ),
    "local_response": Case(
        partial(between, lambda net, x: functional.local_response_norm(x, 5)),
        (3, 8, 8),
        ("b", "c"),
        A,
    ),
    "constant": Case(
        partial(between, lambda net, x: x * torch.arange(8.0).view(8, 1, 1).to(x)),
        (3, 8, 8),
        ("b", "c"),
        A,
    ),
    "cross_stage": Case(
        partial(between, cross_stage, inner=nn.Conv2d(4, 4, 1)), (3, 8, 8), ("b", "c"), {}
    ),
    "auxiliary": Case(Auxiliary, (3, 8, 8), ("b",), A),
    "first_slice": Case(partial(sliced, slice(0, 4)), (3, 8, 8), (), A),
    "strided_slice": Case(partial(sliced, slice(0, None, 2)), (3, 8, 8), (), A),
}


def resnet8(num_classes: int) -> ResNet:
    """The smallest of its family: three blocks, of which each gives its first convolution."""
    return ResNet((1, 1, 1), num_classes=num_classes)
