"""A property suite: seeded random networks of every kind, random plans, three properties each."""

import copy
import random

import pytest
import torch
from helpers.networks import randomized
from helpers.oracle import assert_cut_is_masked, offered, random_plan
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import apply_plan, restore_structure
from acsp_lightning.structure.optimizer import slice_optimizer_state

NETWORKS = 200
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = {1: 12, 2: 6, 3: 4}
BLOCKS = ("chain", "residual", "projected", "depthwise", "concat")


class RandomNetwork(nn.Module):
    """A stem, one to four random blocks, and a classifier behind a flatten or an average."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.ndim = self.draw.choice([1, 2, 2, 3])
        width = self.draw.randint(3, 9)
        self.stem = self.unit(3, width)
        self.kinds = [self.draw.choice(BLOCKS) for _ in range(self.draw.randint(1, 4))]
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
            if kind == "chain":
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
    seen = {"groups": 0, "residual groups": 0, "left whole": 0}
    for seed in range(NETWORKS):
        tracing = offered(*drawn(seed), residual=True)
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
    # A sum over a concatenation ties parts of one layer to several others; nothing else is refused.
    assert not tracing.left_whole or "concat" in model.kinds
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
