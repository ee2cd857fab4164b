import copy
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from helpers.networks import Wired, plain
from helpers.outputs import ModelOutput, Named, Scored
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from acsp_lightning import UnsupportedStructureError
from acsp_lightning.structure.forward import call_counts, is_checkpointed, output_tensors, run_forward
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.structure.verification import prunable_groups

X = (torch.randn(2, 3, 8, 8),)


def test_forward_that_fails_is_told_with_its_inputs():
    with pytest.raises(UnsupportedStructureError, match=r"forward failed .*tensor \(2, 5\)"):
        trace_groups(plain(), (torch.randn(2, 5),))


def test_module_without_forward():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

    with pytest.raises(UnsupportedStructureError, match=r"Silent\.forward failed.*implement it"):
        trace_groups(Silent(), X)


def test_outputs_without_tensors_are_refused():
    class Result:
        def __init__(self, y):
            self.y = y

    model = Wired(lambda net, x: Result(net.inner(x)), inner=plain())
    with pytest.raises(UnsupportedStructureError, match="outputs"):
        trace_groups(model, X)


def test_two_passes_are_alike() -> None:
    """Also of a network in train mode, which draws random numbers and writes to its input."""

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x += 1
        return functional.dropout(net.norm(x)) + torch.rand(1)

    model, x = Wired(forward, norm=nn.BatchNorm1d(3)), torch.ones(4, 3)
    first = run_forward(model, (x,))
    assert torch.equal(run_forward(model, (x,)), first)
    assert torch.equal(x, torch.ones(4, 3))
    assert int(model.norm.num_batches_tracked) == 0


def test_layers_are_counted_in_the_order_of_their_calls() -> None:
    model = Wired(
        lambda net, x: net.a(net.b(net.b(x))), a=nn.Linear(3, 2), b=nn.Linear(3, 3), c=nn.Linear(2, 2)
    )
    assert list(call_counts(model, (torch.ones(1, 3),)).items()) == [("b", 2), ("a", 1)]


class Caching(nn.Module):
    """Makes a mask once and keeps it in one of its attributes."""

    def __init__(self, cache, keep) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)
        self.cache, self.keep = cache, keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x * self.keep(self.cache, torch.linspace(0.5, 1, x.shape[-1])))


def in_a_list(cache, mask):
    if not cache:
        cache.append(mask)
    return cache[0]


def in_a_set(cache, mask):
    if not cache:
        cache.add(mask)
    return next(iter(cache))


@pytest.mark.parametrize(
    ("cache", "keep"),
    [
        ({}, lambda cache, mask: cache.setdefault(len(mask), mask)),
        ([], in_a_list),
        (set(), in_a_set),
        ({"rows": {}}, lambda cache, mask: cache["rows"].setdefault(len(mask), mask)),
    ],
)
def test_caches_of_forward_hold_nothing_that_tracing_made(cache, keep) -> None:
    model, before = Caching(cache, keep), copy.deepcopy(cache)
    assert [group.name for group in prunable_groups(model, X).groups] == ["a"]
    assert cache == before
    assert model.cache is cache
    model(X[0]).sum().backward()
    assert model.a.weight.grad is not None


@dataclass
class Pair:
    first: torch.Tensor
    second: object


def test_tensors_in_outputs_of_any_kind():
    a, b, c = torch.rand(1), torch.rand(2), torch.rand(3)
    for outputs in (
        (a, [b, {"c": c}]),
        {"a": a, "b": (b, "text", None), "c": c},
        ModelOutput(a=a, b=b, c=c),
        [Pair(a, Pair(b, 3)), c],
        (ModelOutput(a=a, b=b), Scored(c)),
        UserDict(a=a, b=Named(b, c)),
        [Pair(a, ModelOutput(b=b)), SimpleNamespace(logits=c)],
    ):
        found = output_tensors(outputs)
        assert [len(tensor) for tensor in found] == [1, 2, 3]
    for empty in (None, 3, "text", Pair, [], SimpleNamespace(logits=3), ModelOutput):
        assert output_tensors(empty) == []


class Frugal(nn.Module):
    """Recomputes a part of its activations in the backward pass."""

    def __init__(self, reentrant, whole=False, in_eval=True):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1))
        self.head = nn.Linear(12, 10)
        self.reentrant, self.whole, self.in_eval = reentrant, whole, in_eval

    def forward(self, x):
        run = self.frugally if self.training or self.in_eval else lambda part, x: part(x)
        return (
            run(self.all, x)
            if self.whole
            else self.head(self.last(run(self.body, self.stem(x))).mean((2, 3)))
        )

    def all(self, x):
        return self.head(self.last(self.body(self.stem(x))).mean((2, 3)))

    def frugally(self, part, x):
        return checkpoint(part, x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("whole", [False, True])
def test_reentrant_checkpointing_is_followed(whole):
    tracing = prunable_groups(Frugal(True, whole=whole), X)
    assert [group.name for group in tracing.groups] == ["stem", "body.0", "body.2", "last"]
    assert tracing.left_whole == {}


@pytest.mark.parametrize("options", [{"reentrant": False}, {"reentrant": True, "in_eval": False}])
@pytest.mark.parametrize("whole", [False, True])
def test_other_checkpointing_is_followed(options, whole):
    tracing = trace_groups(Frugal(whole=whole, **options), X)
    assert [group.name for group in tracing.groups] == ["stem", "body.0", "body.2", "last"]
    assert not is_checkpointed(Frugal(whole=whole, **options).eval(), X)
    assert is_checkpointed(Frugal(True, whole), X)
