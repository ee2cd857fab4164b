import copy
import random
from collections import UserDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import Wired, plain
from helpers.outputs import ModelOutput, Named, Scored
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from acsp_lightning import UnsupportedStructureError
from acsp_lightning.structure.forward import (
    advance_random_state,
    call_counts,
    evaluation_state,
    is_checkpointed,
    of_batch_size,
    output_tensors,
    random_state_restored,
    run_forward,
    varied,
)
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


@pytest.fixture
def _seeded() -> Iterator[None]:
    """Another state of the generators in every test would hide what is not put back."""
    with random_state_restored():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        yield


class StoppedError(Exception):
    pass


def stop(fails: bool) -> None:
    if fails:
        raise StoppedError


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def generator_states() -> tuple[object, ...]:
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()


@pytest.mark.usefixtures("_seeded")
@pytest.mark.parametrize("fails", [False, True])
def test_random_numbers_of_the_body_are_not_noticed_later(fails: bool) -> None:
    before = generator_states()
    with suppress(StoppedError), random_state_restored():
        inside = drawn()
        assert generator_states() != before
        stop(fails)
    assert generator_states() == before
    assert drawn() == inside, "the body drew what would have come next"


class Restless(nn.Module):
    """Counts, averages and rebinds in every pass, in train mode and in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + 1
        self.passes += 1
        self.last = x
        return self.drop(self.norm(self.a(x)))


def noisy(net, x):
    """Draws from every generator that a forward may use."""
    return net.inner(x) + sum(drawn())


@pytest.mark.usefixtures("_seeded")
def test_every_pass_draws_the_same_numbers_and_nobody_notices() -> None:
    model, x = Wired(noisy, inner=nn.Linear(3, 2)), torch.ones(4, 3)
    before = generator_states()
    assert torch.equal(run_forward(model, (x,)), run_forward(model, (x,)))
    assert generator_states() == before
    with evaluation_state(model):
        first = run_forward(model, (x,))
        advance_random_state(model)
        assert not any(a == b for a, b in zip(generator_states(), before, strict=True))
        assert not torch.equal(run_forward(model, (x,)), first)
        model(x)
    assert generator_states() == before


@pytest.mark.usefixtures("_seeded")
def test_tracing_moves_no_generator_and_tries_cuts_with_the_same_numbers() -> None:
    model = Wired(
        lambda net, x: net.b((1 + sum(drawn())) * net.a(x)), a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 2, 3)
    )
    before = generator_states()
    tracing = prunable_groups(model, X)
    assert [group.name for group in tracing.groups] == ["a"]
    assert tracing.left_whole == {}
    assert generator_states() == before


@pytest.mark.usefixtures("_seeded")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_leaves_no_trace(grad: bool, fails: bool) -> None:
    model = Restless()
    model.a.weight.requires_grad_(False)
    model.drop.eval()
    values, seen = copy.deepcopy(model.state_dict()), model.seen
    flags = [module.training for module in model.modules()]
    before = generator_states()
    x = torch.ones(5, 3)
    with suppress(StoppedError), evaluation_state(model, grad=grad):
        assert not any(module.training for module in model.modules())
        first, second = model(x), model(x)
        assert torch.equal(first, second)
        assert first.requires_grad is grad
        assert model.a.weight.requires_grad is grad
        torch.rand(3)
        stop(fails)
    assert [module.training for module in model.modules()] == flags
    assert not model.a.weight.requires_grad
    assert model.a.bias.requires_grad
    assert model.seen is seen
    assert (model.passes, hasattr(model, "last")) == (0, False)
    assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())
    assert generator_states() == before


@pytest.mark.parametrize("size", [0, 2])
def test_buffers_that_forward_resizes_are_put_back(size: int) -> None:
    """As observers of channels do, whose ranges are empty before their first pass."""

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        net.inner.ranges.resize_(x.shape[1]).copy_(x.amax(0))
        return net.inner(x) / net.inner.ranges

    inner, ranges = nn.Identity(), torch.full((size,), 7.0)
    inner.register_buffer("ranges", ranges)
    model = Wired(forward, inner=inner)
    with evaluation_state(model):
        model(torch.rand(4, 3) + 1)
    assert model.inner.ranges is ranges
    assert ranges.tolist() == [7.0] * size


def test_buffers_leave_the_graph_of_a_pass_with_gradients() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = net.inner(x)
        net.inner.last.copy_(y.mean(0))
        return y

    inner, last = nn.Linear(3, 2), torch.zeros(2)
    inner.register_buffer("last", last)
    model = Wired(forward, inner=inner)
    with evaluation_state(model, grad=True):
        assert model(torch.rand(4, 3)).requires_grad
    assert model.inner.last is last
    assert not last.requires_grad
    assert last.tolist() == [0.0, 0.0]


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


@pytest.mark.parametrize(("size", "rows"), [(1, [0]), (3, [0, 1, 2]), (7, [0, 1, 2, 0, 1, 2, 0])])
def test_batches_of_another_size_repeat_their_samples(size: int, rows: list[int]) -> None:
    images, mask, scale = torch.arange(6.0).reshape(3, 2), torch.arange(3), torch.ones(2)
    (found, named, factor, word) = of_batch_size((images, {"mask": mask}, scale, "a"), size)
    assert torch.equal(found, images[rows])
    assert torch.equal(named["mask"], mask[rows])
    assert factor is scale
    assert word == "a"


def test_constant_images_become_noise_and_others_stay() -> None:
    other, whole = torch.arange(4.0), torch.ones(4, dtype=torch.int64)
    zeros, found, numbers = varied((torch.zeros(4, 4), other, whole))
    assert zeros.unique().numel() == 16
    assert found is other
    assert numbers is whole


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


def test_layers_that_are_spared_keep_their_new_buffers_and_get_back_their_flags() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).train()
    with evaluation_state(model, but=[model[0]]):
        model[0].train()
        model(torch.ones(4, 3))
        model[0].eval()
        model[1].running_mean += 1
    assert [int(norm.num_batches_tracked) for norm in model] == [1, 0]
    assert torch.equal(model[1].running_mean, torch.zeros(3))
    assert all(norm.training for norm in model)
