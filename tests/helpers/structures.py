"""Small networks, one for each structure of networks that people use; all of them can be cut."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.networks import BasicBlock, Case, Wired, between, shuffled


class Body(nn.Module):
    """conv "stem" -> ``body``, which makes maps of the same width -> conv "mix" -> head."""

    def __init__(self, body: nn.Module, width: int = 8, after: int | None = None) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, width, 3, padding=1), body
        self.mix = nn.Conv2d(width if after is None else after, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(functional.relu(self.stem(x)))
        return self.head(functional.relu(self.mix(x)).mean((2, 3)))


class Residual(nn.Module):
    """Adds what layers make of the stream to it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.layers(x))


def grouped(groups: int, inner: int, outputs: int | None = None, dilation: int = 1) -> nn.Module:
    outputs = inner if outputs is None else outputs
    middle = nn.Conv2d(inner, outputs, 3, padding=dilation, dilation=dilation, groups=groups)
    return Residual(
        *(nn.Conv2d(8, inner, 1), nn.ReLU(), middle),
        *(nn.BatchNorm2d(outputs), nn.ReLU(), nn.Conv2d(outputs, 8, 1)),
    )  # fmt: skip


def transposed_in_groups(groups: int) -> nn.Module:
    up = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=groups)
    return nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(8, 8, 1))


class Attended(nn.Module):
    """Branches in one convolution, of which a softmax chooses (ResNeSt)."""

    def __init__(self, width: int, radix: int = 2) -> None:
        super().__init__()
        self.radix = radix
        self.conv = nn.Conv2d(width, width * radix, 3, padding=1, groups=radix)
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width * radix, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        batch, channels, *rest = x.shape
        branches = x.reshape(batch, self.radix, channels // self.radix, *rest)
        gate = self.excite(self.squeeze(branches.sum(1).mean((2, 3), keepdim=True)).relu())
        gate = gate.view(batch, 1, self.radix, -1).transpose(1, 2).softmax(1).reshape(batch, -1, 1, 1)
        gate = gate.view(batch, self.radix, channels // self.radix, 1, 1)
        return (branches * gate).sum(1)


class Selective(nn.Module):
    """Kernels of several sizes, of which a softmax over stacked branches chooses (SKNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.small, self.large = (nn.Conv2d(width, width, k, padding=k // 2) for k in (1, 3))
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack([self.small(x), self.large(x)], 1)
        gate = self.excite(self.squeeze(branches.sum(1).mean((2, 3), keepdim=True)).relu())
        batch, channels = gate.shape[:2]
        gate = gate.view(batch, 2, channels // 2, 1, 1).softmax(1)
        return (branches * gate).sum(1)


class Parameter(nn.Module):
    """Joins maps with a parameter (or buffer) of some shape."""

    def __init__(
        self, join: Callable[[Tensor, Tensor], Tensor], *shape: int, buffer: bool = False
    ) -> None:
        super().__init__()
        self.join = join
        if buffer:
            self.register_buffer("weight", torch.rand(shape))
        else:
            self.weight = nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.weight)


def scaled(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


def shifted(x: Tensor, weight: Tensor) -> Tensor:
    return x + weight


def viewed(x: Tensor, weight: Tensor) -> Tensor:
    return x * (1 + weight.sigmoid()).view(1, -1, 1, 1)


def channels_last(x: Tensor, weight: Tensor) -> Tensor:
    return (x.permute(0, 2, 3, 1) * weight).permute(0, 3, 1, 2)


class Ghost(nn.Module):
    """Half of the maps are made of the other half; the width is an attribute."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.out_chs = outputs
        half = -(-outputs // 2)
        self.primary = nn.Conv2d(inputs, half, 1)
        self.cheap = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x).relu()
        return torch.cat([x, self.cheap(x).relu()], 1)[:, : self.out_chs]


class Scales(nn.Module):
    """Parts of one width, each added to the next (Res2Net)."""

    def __init__(self, width: int, scales: int = 3) -> None:
        super().__init__()
        self.width = width
        self.before = nn.Conv2d(8, width * scales, 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(scales - 1))
        self.after = nn.Conv2d(width * scales, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.before(x).relu(), self.width, 1)
        made = [parts[-1]]
        for part, conv in zip(parts[:-1], self.convs, strict=True):
            made.append(conv(part if len(made) == 1 else part + made[-1]).relu())
        return self.after(torch.cat(made, 1))


class Split(nn.Module):
    """A part of the maps goes on, the other past it (C2f, CSP); ``divide`` says how they part."""

    def __init__(
        self, divide: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]], first: int = 6
    ) -> None:
        super().__init__()
        self.first, self.both, self.divide = first, 12, divide
        self.parts = [first, 12 - first]
        self.before = nn.Conv2d(8, 12, 1)
        self.inner = nn.Conv2d(first, 5, 3, padding=1)
        self.after = nn.Conv2d(17 - first, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.divide(self, self.before(x).relu())
        return self.after(torch.cat([self.inner(first).relu(), second], 1))


class Partial(nn.Module):
    """A convolution of some of the maps (FasterNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.touched, self.untouched = width // 4, width - width // 4
        self.conv = nn.Conv2d(self.touched, self.touched, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, [self.touched, self.untouched], 1)
        return torch.cat([self.conv(first), second], 1)


class Grown(nn.Module):
    """A wider map, to the first channels of which the narrower input is added (ReXNet)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.conv = inputs, nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, 0 : self.inputs] += x
        return y


class Dual(nn.Module):
    """One part of the maps is added, the other concatenated (DPN)."""

    def __init__(self, width: int, grows: int) -> None:
        super().__init__()
        self.added = width
        self.conv = nn.Conv2d(width, width + grows, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([x + y[:, : self.added], y[:, self.added :]], 1)


class Mixed(nn.Module):
    """Depthwise kernels of several sizes; the widths of the parts are a list (MixNet)."""

    def __init__(self, *splits: int) -> None:
        super().__init__()
        self.splits = list(splits)
        self.convs = nn.ModuleList(
            nn.Conv2d(n, n, 1 + 2 * k, padding=k, groups=n) for k, n in enumerate(splits)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.splits, 1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1)


class SamePadding(nn.Conv2d):
    """Pads by a child of its own, as the widespread ports of EfficientNet do."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.static_padding = nn.ZeroPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Gained(nn.Conv2d):
    """Multiplies its filters by a parameter of its own."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.gain, self.bias)


class Normed(nn.Conv2d):
    """Normalises and activates what it gives by layers inside it."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.norm, self.act = nn.BatchNorm2d(self.out_channels), nn.PReLU(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(super().forward(x)))


class NormAct(nn.BatchNorm2d):
    """A norm with its activation inside it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class FrozenNorm(nn.Module):
    """A BatchNorm of buffers alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.view(1, -1, 1, 1) * (self.running_var.view(1, -1, 1, 1) + 1e-3).rsqrt()
        return x * scale + (self.bias.view(1, -1, 1, 1) - self.running_mean.view(1, -1, 1, 1) * scale)


class Shrinking(nn.Module):
    """A shortcut without parameters: the input padded with channels of zeros (option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.front, self.back = 1, outputs - inputs - 1
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.back))
        return (shortcut + self.conv2(self.conv1(x).relu())).relu()


def in_parts(x: Tensor, weight: Tensor) -> Tensor:
    batch, channels, *rest = x.shape
    return (x.view(batch, 2, channels // 2, *rest) * weight).view(x.shape)


class Taken(nn.Module):
    """Runs a network that it holds under names of its own, as transfer learning does."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), grouped(6, 12), Ghost(8, 8))
        self.encoder = nn.Sequential(*self.model.children(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def coordinates(net: nn.Module, x: Tensor) -> Tensor:
    line = torch.linspace(-1, 1, x.shape[-1]).to(x).expand(len(x), 1, *x.shape[2:])
    return torch.cat([line, x, line], 1)


class Blurred(nn.Module):
    """Smooths every channel by a filter that is no layer (BlurPool)."""

    def __init__(self, width: int, every: bool) -> None:
        super().__init__()
        self.channels = width
        self.register_buffer("filters", torch.rand(width if every else 1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        filters = self.filters.expand(self.channels, -1, -1, -1)
        return functional.conv2d(x, filters, stride=2, padding=1, groups=self.channels)


def case(body: Callable[[], nn.Module], *cut: str, after: int | None = None) -> Case:
    return Case(lambda: Body(body(), after=after), (3, 8, 8), cut, residual=True)


STREAM = ("stem", "body.layers.0")
STRUCTURES = {
    "whole groups": case(lambda: grouped(6, 12), *STREAM, "mix"),
    "shares of groups": case(lambda: grouped(2, 12), *STREAM, "body.layers.2", "mix"),
    "shares, more outputs": case(lambda: grouped(2, 8, 12), *STREAM, "body.layers.2", "mix"),
    "dilated groups": case(lambda: grouped(4, 8, dilation=2), *STREAM, "mix"),
    "two outputs a group": case(lambda: grouped(6, 6, 12), *STREAM, "mix"),
    "transposed, whole groups": case(
        lambda: transposed_in_groups(4), "stem", "body.0", "body.4", "mix"
    ),
    "transposed, shares": case(
        lambda: transposed_in_groups(2), "stem", "body.0", "body.2", "body.4", "mix"
    ),
    "group norm": case(lambda: Residual(nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU(),
                                        nn.Conv2d(12, 8, 1)), *STREAM, "mix"),
    "group norm in a stream": case(
        lambda: Residual(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8)), "stem", "mix"
    ),
    "group norm without weights": case(
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8, affine=False)),
        *("stem", "body.0", "mix"),
    ),
    "split attention": case(lambda: Attended(8), "stem", "body.conv", "body.squeeze", "mix"),
    "selective kernels": case(lambda: Selective(8), "stem", "body.small", "body.squeeze", "mix"),
    "layer scale": case(lambda: Residual(nn.Conv2d(8, 8, 1), Parameter(scaled, 8, 1, 1)), "stem", "mix"),
    "learned shift": case(lambda: Parameter(shifted, 1, 8, 1, 1), "stem", "mix"),
    "learned gate": case(lambda: Parameter(viewed, 8), "stem", "mix"),
    "channels last": case(lambda: Parameter(channels_last, 8), "stem", "mix"),
    "map of positions and channels": case(lambda: Parameter(shifted, 1, 8, 8, 8), "stem", "mix"),
    "map of positions": case(lambda: Parameter(shifted, 1, 1, 8, 8), "stem", "mix"),
    "scale after a view": case(lambda: Parameter(in_parts, 4, 1, 1), "stem", "mix"),
    "scale of every part": case(lambda: Parameter(in_parts, 2, 1, 1, 1), "stem", "mix"),
    "one number": case(lambda: Parameter(scaled, 1), "stem", "mix"),
    "buffer": case(lambda: Parameter(scaled, 8, 1, 1, buffer=True), "stem", "mix"),
    "frozen norm": case(lambda: FrozenNorm(8), "stem", "mix"),
    "ghost": case(lambda: Ghost(8, 12), "stem", "body.primary", "mix", after=12),
    "scales": case(lambda: Scales(4), "stem", "body.before", "body.convs.1", "body.after", "mix"),
    "chunk": case(lambda: Split(lambda _, x: x.chunk(2, 1)), "stem", "body.before", "body.inner",
                  "body.after", "mix"),
    "split in half": case(lambda: Split(lambda net, x: x.split(net.both // 2, 1)), "stem", "body.before",
                          "body.inner", "body.after", "mix"),
    "split by an attribute": case(
        lambda: Split(lambda net, x: (x[:, : net.first], x[:, net.first :]), first=4),
        *("stem", "body.before", "body.before (2)", "body.inner", "body.after", "mix"),
    ),
    "split by a list": case(
        lambda: Split(lambda net, x: x.split(net.parts, 1), first=5),
        *("stem", "body.before", "body.before (2)", "body.inner", "body.after", "mix"),
    ),
    "narrow": case(
        lambda: Split(lambda net, x: (x.narrow(1, 0, net.first), x[:, net.first :]), first=4),
        *("stem", "body.before", "body.before (2)", "body.inner", "body.after", "mix"),
    ),
    "partial convolution": case(lambda: Partial(8), "stem", "stem (2)", "body.conv", "mix"),
    "grown": case(lambda: Grown(8, 12), "stem", "body.conv", "mix", after=12),
    "dual path": case(lambda: Dual(8, 4), "stem", "body.conv", "mix", after=12),
    "mixed kernels": case(lambda: Mixed(5, 3), "stem", "stem (2)", "mix"),
    "shuffle": Case(lambda: between(shuffled), (3, 8, 8), ("a", "b", "c")),
    "same padding": case(lambda: SamePadding(8, 8, 3), "stem", "body", "mix"),
    "gain": case(lambda: Gained(8, 8, 3), "stem", "body", "mix"),
    "layers inside": case(lambda: Normed(8, 8, 3), "stem", "body", "mix"),
    "norm with activation": case(lambda: NormAct(8), "stem", "mix"),
    "padded shortcut": case(lambda: Shrinking(8, 12), "stem", "body.conv1", "mix", after=12),
    "coordinates": case(lambda: Wired(coordinates), "stem", "mix", after=10),
    "pixel shuffle": case(lambda: nn.PixelShuffle(2), "stem", "mix", after=2),
    "pixel unshuffle": case(lambda: nn.PixelUnshuffle(2), "stem", "mix", after=32),
    "flip": case(lambda: Wired(lambda _, x: x.flip(1)), "stem", "mix"),
    "maxout": case(
        lambda: nn.Sequential(nn.Conv2d(8, 16, 1), Wired(lambda _, x: torch.max(*x.chunk(2, 1)))),
        *("stem", "body.0", "mix"),
    ),
    "gated": case(lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.GLU(1)), "stem", "body.0", "mix"),
    "blurred, one filter": case(lambda: Blurred(8, every=False), "stem", "mix"),
    "blurred, filters of channels": case(lambda: Blurred(8, every=True), "stem", "mix"),
    "views like others": case(
        lambda: Wired(lambda _, x: x.flatten(2).view_as(x.flatten(2)).reshape_as(x)), "stem", "mix"
    ),
    "basic block": case(lambda: BasicBlock(8, 8), "stem", "body.conv1", "mix"),
    "two names": Case(
        Taken, (3, 8, 8), ("model.0", "model.1.layers.0", "model.2.primary"), residual=True
    ),
}  # fmt: skip
