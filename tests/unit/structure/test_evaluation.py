import copy
from contextlib import suppress

import pytest
import torch
from helpers.networks import Wired
from helpers.randomness import StoppedError, generator_states, stop
from torch import nn

from acsp_lightning.structure.evaluation import evaluation_state


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
