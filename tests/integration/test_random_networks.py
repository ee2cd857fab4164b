"""A property suite: seeded random networks of every kind, random plans, three properties each."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from helpers.networks import randomized
from helpers.oracle import assert_cut_is_masked, offered, random_plan
from helpers.structures import (
    Attended,
    Dual,
    Ghost,
    Grown,
    Normed,
    Parameter,
    Scales,
    Selective,
    Split,
    shifted,
)
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import apply_plan, restore_structure
from acsp_lightning.structure.optimizer import slice_optimizer_state

NETWORKS = 400
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = {1: 12, 2: 6, 3: 4}
BLOCKS = ("chain", "residual", "projected", "depthwise", "concat")


def gated(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight.sigmoid()


# Of maps: the block for a width, and its width.
STRUCTURES: dict[str, Callable[[random.Random, int], tuple[nn.Module, int]]] = {
    "grouped": lambda draw, width: in_groups(draw, width, draw.randint(2, 4)),
    "shares": lambda draw, width: in_groups(draw, width, 2, share=draw.randint(3, 5)),
    "group norm": lambda draw, width: normed(width, draw.randint(2, 4), draw.randint(1, 3)),
    "parameter": lambda draw, width: (Parameter(draw.choice([gated, shifted]), width, 1, 1), width),
    "map": lambda draw, width: (Parameter(shifted, draw.choice([1, width]), 6, 6), width),
    "ghost": lambda draw, width: (Ghost(width, 2 * (half := draw.randint(2, 4))), 2 * half),
    "scales": lambda draw, width: around(width, Scales(draw.randint(2, 3))),
    "chunk": lambda draw, width: around(width, Split(lambda _, x: x.chunk(2, 1))),
    "attribute": lambda draw, width: around(width, Split(by_attribute, draw.randint(2, 10))),
    "grown": lambda draw, width: (Grown(width, after := width + draw.randint(1, 4)), after),
    "dual": lambda draw, width: (Dual(width, grows := draw.randint(1, 4)), width + grows),
    "attended": lambda draw, width: around(width, Attended(8)),
    "selective": lambda draw, width: (Selective(width), width),
    "normed": lambda draw, width: (Normed(width, after := draw.randint(3, 9), 1), after),
    "shuffle": lambda draw, width: shuffled_twice(width),
    "pixels": lambda draw, width: (
        nn.Sequential(nn.Conv2d(width, 12, 1), nn.PixelShuffle(2), Pool()),
        3,
    ),
    "padded": lambda draw, width: (Padded(draw.randint(0, 2), draw.randint(1, 2)), None),
}


def in_groups(draw: random.Random, width: int, groups: int, share: int = 2) -> tuple[nn.Module, int]:
    inner, outer = groups * share, groups * draw.randint(1, 3)
    return nn.Sequential(
        nn.Conv2d(width, inner, 1), nn.Conv2d(inner, outer, 3, 1, 1, groups=groups)
    ), outer


def normed(width: int, groups: int, share: int) -> tuple[nn.Module, int]:
    return nn.Sequential(nn.Conv2d(width, groups * share, 1), nn.GroupNorm(groups, groups * share)), (
        groups * share
    )


def around(width: int, body: nn.Module) -> tuple[nn.Module, int]:
    """A body that takes and gives eight channels."""
    return nn.Sequential(nn.Conv2d(width, 8, 1), body), 8


def by_attribute(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, : net.first], x[:, net.first :]


def shuffled_twice(width: int) -> tuple[nn.Module, int]:
    return nn.Sequential(nn.Conv2d(width, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 6, 1)), 6


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(x, 6)


class Padded(nn.Module):
    """Pads channels of zeros."""

    def __init__(self, front: int, back: int) -> None:
        super().__init__()
        self.pads = (0, 0, 0, 0, front, back)
        self.more = front + back

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.pads)


class RandomNetwork(nn.Module):
    """A stem, one to four random blocks, and a classifier behind a flatten or an average."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.ndim = self.draw.choice([1, 2, 2, 3])
        width = self.draw.randint(3, 9)
        self.stem = self.unit(3, width)
        kinds = (*BLOCKS, *STRUCTURES) if self.ndim == 2 and seed % 2 else BLOCKS
        self.kinds = [self.draw.choice(kinds) for _ in range(self.draw.randint(1, 4))]
        self.blocks = nn.ModuleList()
        for kind in self.kinds:
            block, width = self.block(kind, width)
            self.blocks.append(block)
        self.flattens = self.draw.random() < 0.5
        features = width * SIZE[self.ndim] ** self.ndim if self.flattens else width
        self.hidden = nn.Linear(features, self.draw.randint(2, 7)) if self.draw.random() < 0.5 else None
        self.head = nn.Linear(features if self.hidden is None else self.hidden.out_features, 4)

    def unit(self, inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
        """A convolution of a random kernel, perhaps with a bias, perhaps with a BatchNorm."""
        kernel = self.draw.choice([1, 3])
        layers: list[nn.Module] = [
            CONVOLUTIONS[self.ndim](
                inputs,
                outputs,
                kernel,
                padding=kernel // 2,
                groups=groups,
                bias=self.draw.random() < 0.5,
            )
        ]
        if self.draw.random() < 0.7:
            layers.append(NORMS[self.ndim](outputs, affine=self.draw.random() < 0.8))
        return nn.Sequential(*layers)

    def block(self, kind: str, width: int) -> tuple[nn.ModuleDict, int]:
        if kind in STRUCTURES:
            body, after = STRUCTURES[kind](self.draw, width)
            return nn.ModuleDict({"body": body}), width + body.more if after is None else after
        middle, after = self.draw.randint(3, 9), self.draw.randint(3, 9)
        if kind == "chain":
            return nn.ModuleDict({"a": self.unit(width, after)}), after
        if kind == "residual":
            return nn.ModuleDict({"a": self.unit(width, middle), "b": self.unit(middle, width)}), width
        if kind == "projected":
            parts = {"a": self.unit(width, middle), "b": self.unit(middle, after)}
            return nn.ModuleDict({**parts, "skip": self.unit(width, after)}), after
        if kind == "depthwise":
            parts = {"a": self.unit(width, middle), "deep": self.unit(middle, middle, groups=middle)}
            return nn.ModuleDict({**parts, "b": self.unit(middle, after)}), after
        return nn.ModuleDict({"a": self.unit(width, middle), "b": self.unit(width, after)}), (
            middle + after + width
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            if kind in STRUCTURES:
                x = block["body"](x).relu()
            elif kind == "chain":
                x = block["a"](x).relu()
            elif kind in ("residual", "projected"):
                skip = block["skip"](x) if kind == "projected" else x
                x = (skip + block["b"](functional.gelu(block["a"](x)))).relu()
            elif kind == "depthwise":
                x = block["b"](functional.silu(block["deep"](functional.hardtanh(block["a"](x)))))
            else:
                x = torch.cat([block["a"](x).relu(), x, block["b"](x).sigmoid()], dim=1)
        x = x.flatten(1) if self.flattens else x.flatten(2).mean(2)
        return self.head(x if self.hidden is None else self.hidden(x).relu())


def drawn(seed: int) -> tuple[RandomNetwork, tuple[Tensor, ...]]:
    """A network with random weights, and inputs for it."""
    model = RandomNetwork(seed)
    randomized(model, seed)
    shape = (2, 3, *[SIZE[model.ndim]] * model.ndim)
    return model, (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
    )


def test_hardly_any_group_is_left_whole() -> None:
    """Figures of all networks, printed by ``pytest -s``."""
    seen = {"groups": 0, "residual groups": 0, "left whole": 0, "networks with structures": 0}
    for seed in range(NETWORKS):
        model, inputs = drawn(seed)
        tracing = offered(model, inputs, residual=True)
        seen["networks with structures"] += any(kind in STRUCTURES for kind in model.kinds)
        seen["groups"] += len(tracing.groups)
        seen["residual groups"] += sum(group.residual for group in tracing.groups)
        seen["left whole"] += len(tracing.left_whole)
    print(f"\n{NETWORKS} networks,", ", ".join(f"{number} {name}" for name, number in seen.items()))
    assert seen["residual groups"] > 0
    assert seen["left whole"] < 0.05 * seen["groups"]


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_a_random_network(seed: int) -> None:
    model, inputs = drawn(seed)
    whole = copy.deepcopy(model)
    tracing = offered(model, inputs, residual=True)
    plan = random_plan(tracing.groups, seed)
    expected = assert_cut_is_masked(model, plan, inputs)

    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    functional.cross_entropy(model(*inputs), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert slice_optimizer_state(optimizer, apply_plan(model, plan)) == ()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.zero_grad()
    functional.cross_entropy(model(*inputs), torch.tensor([0, 1])).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        # A ReLU that never fires gives its layer no gradient, before or after the cut.
        assert bool(parameter.grad.any()) <= bool((parameter != before[name]).any())

    restore_structure(whole, expected.state_dict())
    whole.load_state_dict(expected.state_dict())
    with torch.no_grad():
        assert torch.equal(whole(*inputs), expected(*inputs))
