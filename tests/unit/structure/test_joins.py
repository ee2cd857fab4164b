"""Channels that are joined with constants, cut against the masked network."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers.oracle import offered, random_plan
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import apply_plan
from acsp_lightning.structure.joins import Joins

X = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def coordinates(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.shape[-1]).to(x).expand(len(x), 1, *x.shape[2:])


def padded(x: Tensor, front: int, back: int) -> Tensor:
    return functional.pad(x, (0, 0, 0, 0, front, back))


JOINS: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "constant first": (13, lambda a, b: torch.cat([coordinates(a), a, b], 1)),
    "constant between": (14, lambda a, b: torch.cat([a, coordinates(a), coordinates(a), b], 1)),
    "constant last": (13, lambda a, b: torch.cat([a, b, coordinates(a)], dim=1)),
    "negative axis": (13, lambda a, b: torch.concat([coordinates(a), a, b], dim=-3)),
    "by the name axis": (13, lambda a, b: torch.concatenate([coordinates(a), a, b], axis=1)),
    "padded in front": (14, lambda a, b: torch.cat([padded(a, 2, 0), b], 1)),
    "padded on both sides": (15, lambda a, b: torch.cat([b, padded(a, 1, 2)], 1)),
    "the network's input first": (14, lambda a, b: torch.cat([X[: len(a)], a, b], 1)),
}


class Joined(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        width, self.join = JOINS[name]
        self.a = nn.Conv2d(2, 8, 3, padding=1)
        self.b = nn.Conv2d(2, 4, 1)
        self.mix = nn.Conv2d(width, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.join(self.a(x).relu(), self.b(x).tanh())
        return self.head(self.mix(joined).relu().mean((2, 3)))


def times(mask: Tensor, _module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    return (given[0] * mask,)


@pytest.mark.parametrize("name", JOINS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_joined_with_constants_is_cut_like_the_masked_network(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = Joined(name).double().eval()
    groups = offered(model, (X,)).groups
    assert [group.name for group in groups] == ["a", "b", "mix"]
    plan = random_plan(groups, seed)
    masked = []
    for cut in plan:
        if cut.side == "in":
            mask = torch.zeros(cut.width, dtype=torch.float64)
            mask[list(cut.kept)] = 1
            shaped = mask.view((-1, 1, 1) if cut.layer == "mix" else (-1,))
            hook = partial(times, shaped)
            masked.append(model.get_submodule(cut.layer).register_forward_pre_hook(hook))
    with torch.no_grad():
        expected = model(X)
        for handle in masked:
            handle.remove()
        apply_plan(model, plan)
        assert torch.allclose(model(X), expected, atol=1e-12)


def test_vectors_are_joined_on_their_last_axis() -> None:
    vectors, constant = torch.rand(2, 4, requires_grad=True), torch.zeros(2, 3)
    with Joins() as joins:
        one = torch.cat([constant, vectors * 1], -1)
        other = functional.pad(vectors * 1, (5, 0))
        rows = torch.cat([torch.zeros(1, 4), vectors * 1], 0)  # no channels
        known = torch.cat([vectors * 1, vectors * 2], 1)  # no constant
    assert joins.spans[one.grad_fn] == [(3, 7)]
    assert joins.spans[other.grad_fn] == [(5, 9)]
    assert rows.grad_fn not in joins.spans
    assert known.grad_fn not in joins.spans


class Shifted(nn.Module):
    """Adds a parameter of some shape to a map."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.shift = nn.Parameter(torch.rand(shape))
        self.next = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.next((self.conv(x) + self.shift).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (8, 1, 1), (1, 1, 6, 6), (1, 8, 6, 6)])
def test_a_sum_with_a_parameter_is_no_residual_sum(shape: tuple[int, ...]) -> None:
    """Cut along, or named as left whole; never passed over without a word."""
    tracing = offered(Shifted(*shape).double().eval(), (X,))
    names = {group.name for group in tracing.groups} | tracing.left_whole.keys()
    assert names == {"conv", "next"}
