"""Small networks whose norms take all channels together, and what they give over those that are kept.

The truth about a cut is written by hand here: each norm as a formula of the channels that stay.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning.structure.plan import PruningPlan
from helpers.networks import Case


class Residual(nn.Sequential):
    """Adds what layers make of the stream to it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Permuted(nn.Module):
    """Runs a module on maps whose channels are last."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MapNorm(nn.LayerNorm):
    """A LayerNorm of maps whose channels are first, as timm and torchvision have it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GammaNorm(nn.Module):
    """A LayerNorm by hand, of maps, whose parameters have names of their own and whose shift is 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, 1, 1))
        self.beta = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
        return self.gamma * (x - mean) / (var + 1e-6).sqrt() + self.beta


class RootNorm(nn.Module):
    """An RMSNorm by hand, of maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


class HandNorm(nn.Module):
    """The LayerNorm of maps in the code of the authors of ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Responses(nn.Module):
    """Global response normalisation of maps whose channels are last (ConvNeXt V2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.zeros(1, 1, 1, width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        sizes = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (sizes / (sizes.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class Standardised(nn.Conv2d):
    """Standardises its filters (BiT)."""

    def filters(self, weight: Tensor) -> Tensor:
        var, mean = torch.var_mean(weight, (1, 2, 3), keepdim=True, correction=0)
        return (weight - mean) / (var + 1e-6).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.filters(self.weight), self.bias)


class Gained(Standardised):
    """Standardises its filters and gives each a gain (NF-nets)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        self.scale = self.weight[0].numel() ** -0.5

    def filters(self, weight: Tensor) -> Tensor:
        return self.gain * self.scale * super().filters(weight)


class NormAct(nn.GroupNorm):
    """A norm over all channels with an activation inside it that has a slope for each."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width)
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class MapNormAct(MapNorm):
    """The same of the maps of a position."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Pooled(nn.Module):
    """Mixes neighbouring positions without weights (PoolFormer)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x


class Tokens(nn.Module):
    """Patches -> tokens -> ``blocks`` -> mean -> head."""

    def __init__(self, width: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Conv2d(3, width, 4, 4), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)
        self.position = nn.Parameter(torch.rand(1, 4, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def body(*blocks: nn.Module, width: int = 8) -> nn.Module:
    """conv -> ``blocks``, which make ``width`` maps of 8 -> head."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, *head)


def convnext(
    norm: Callable[[int], nn.Module], inner: Callable[[int], nn.Module] | None = None
) -> nn.Module:
    def block(width: int) -> nn.Module:
        between = [] if inner is None else [inner(10)]
        mlp = (nn.LayerNorm(width), nn.Linear(width, 10), nn.GELU(), *between, nn.Linear(10, width))
        return Residual(nn.Conv2d(width, width, 3, padding=1, groups=width), Permuted(*mlp))

    return body(norm(8), block(8), norm(8), nn.Conv2d(8, 12, 2, 2), block(12), width=12)


def normed_net() -> nn.Sequential:
    """Of the size of the images of the fits: a stream of 8 with norms of its own, and a layer of 6."""
    block = Residual(MapNorm(8), nn.Conv2d(8, 6, 1), nn.GELU(), nn.Conv2d(6, 8, 1))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), block, MapNorm(8), *head)


def preactivated(conv: Callable[..., nn.Module]) -> nn.Module:
    block = (nn.GroupNorm(4, 8), nn.ReLU(), conv(8, 12, 1), nn.GroupNorm(3, 12), nn.ReLU())
    return body(Residual(*block, conv(12, 8, 3, padding=1)), nn.ReLU(), conv(8, 10, 3), width=10)


def of_norms(build: Callable[[], nn.Module], *cut: str) -> Case:
    return Case(build, (3, 8, 8), cut, residual=True, norms="refit")


CONVNEXT = ("0", "2.1.layers.1", "4", "5.1.layers.1")

NORMED: dict[str, Case] = {
    "layer norm": of_norms(lambda: convnext(MapNorm), *CONVNEXT),
    "layer norm by hand": of_norms(lambda: convnext(HandNorm), *CONVNEXT),
    "layer norm of other names": of_norms(lambda: convnext(GammaNorm), *CONVNEXT),
    "root mean square by hand": of_norms(lambda: convnext(RootNorm), *CONVNEXT),
    "global responses": of_norms(lambda: convnext(MapNorm, Responses), *CONVNEXT),
    "layer norm and activation": of_norms(lambda: convnext(MapNormAct), *CONVNEXT),
    "norm of all maps": of_norms(
        lambda: body(
            Residual(nn.GroupNorm(1, 8), Pooled()),
            Residual(NormAct(8), nn.Conv2d(8, 12, 1), nn.GELU(), nn.Conv2d(12, 8, 1)),
        ),
        *("0", "2.1"),
    ),
    "tokens": of_norms(
        lambda: Tokens(
            8, Residual(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)),
            Residual(nn.RMSNorm(8), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8)),
        ), *("embed", "blocks.0.1", "blocks.1.1"),
    ),
    "norm without weights": of_norms(
        lambda: Tokens(8, nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8)),
        *("embed", "blocks.1"),
    ),
    "standardised filters": of_norms(lambda: preactivated(Standardised), "0", "1.2", "3"),
    "standardised filters with gains": of_norms(lambda: preactivated(Gained), "0", "1.2", "3"),
}  # fmt: skip


@contextmanager
def norms_over_kept(model: nn.Module, plan: PruningPlan) -> Iterator[None]:
    """Let the norms of an uncut network run over the channels that a plan keeps."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            sides = [cut for cut in plan if cut.layer == name and (is_norm(module) or cut.side == "in")]
            if sides and (isinstance(module, Standardised) or is_norm(module)):
                kept = torch.tensor(sides[0].kept)
                stack.callback(module.register_forward_hook(over(kept)).remove)
        yield


def is_norm(module: nn.Module) -> bool:
    return isinstance(
        module, nn.LayerNorm | nn.RMSNorm | HandNorm | GammaNorm | RootNorm | Responses
    ) or (isinstance(module, nn.GroupNorm) and module.num_groups == 1)


def over(kept: Tensor) -> Callable[..., Tensor]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        (x,) = arguments
        if isinstance(module, Standardised):
            return module._conv_forward(x[:, kept], module.filters(module.weight[:, kept]), module.bias)
        first = isinstance(module, MapNorm | HandNorm | GammaNorm | RootNorm | nn.GroupNorm)
        x = (x.movedim(1, -1) if first else x)[..., kept]
        found = (output.movedim(1, -1) if first else output).clone()
        found[..., kept] = formula(module, x, kept)
        return found.movedim(-1, 1) if first else found

    return hook


def formula(module: nn.Module, x: Tensor, kept: Tensor) -> Tensor:
    """A norm of channels that are last."""
    if isinstance(module, Responses):
        sizes = x.square().sum((1, 2), keepdim=True).sqrt()
        share = sizes / (sizes.sum(-1, keepdim=True) / len(kept) + 1e-6)
        return x + module.gamma[..., kept] * x * share + module.beta[..., kept]
    if isinstance(module, nn.RMSNorm):
        eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * module.weight[kept]
    if isinstance(module, RootNorm):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.gamma.flatten()[kept]
    if isinstance(module, GammaNorm):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return x * module.gamma.flatten()[kept] + module.beta.flatten()[kept]
    dims = tuple(range(1, x.ndim)) if isinstance(module, nn.GroupNorm) else (-1,)
    x = (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + module.eps).sqrt()
    if module.weight is not None:
        x = x * module.weight[kept] + module.bias[kept]
    if isinstance(module, NormAct | MapNormAct):
        x = torch.where(x > 0, x, x * module.act.weight[kept])
    return x
