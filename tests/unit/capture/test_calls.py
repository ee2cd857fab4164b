"""What is noted of a network in training, without a Trainer."""

import copy
from typing import Any

import pytest
import torch
from helpers.fits import hooks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from acsp_lightning.capture.calls import LastCall


class Outer(nn.Module):
    """A network in a network; ``step`` stands for a training step that a wrapper calls as forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        self.step: Any = None

    def forward(self, images: Tensor, scale: float = 1.0) -> Any:
        if self.step is not None:
            step, self.step = self.step, None
            return step(images)
        return self.net(images.mul_(scale))


IMAGES = torch.arange(4.0).reshape(2, 2)


def watched(*names: str, redirected: bool = False) -> tuple[Outer, LastCall]:
    model = Outer()
    calls = LastCall(model, names)
    calls.attach(redirected=redirected)
    return model, calls


def test_the_outermost_call_counts_with_its_inputs_from_before_it() -> None:
    model, calls = watched("", "net")
    outputs = model(IMAGES.clone(), scale=3.0)
    call = calls.take()
    assert call is not None
    assert (call.name, call.keywords) == ("", {"scale": 3.0})
    assert torch.equal(call.arguments[0], IMAGES)
    assert call.outputs is outputs
    assert calls.take() is None


def test_a_part_that_is_called_by_itself_counts() -> None:
    model, calls = watched("", "net")
    model(IMAGES.clone())
    outputs = model.net(IMAGES)
    call = calls.take()
    assert call is not None
    assert call.name == "net"
    assert call.outputs is outputs


def test_calls_without_gradients_and_other_copies_do_not_count() -> None:
    model, calls = watched("", "net")
    with torch.no_grad():
        model(IMAGES.clone())
    assert calls.take() is None
    calls.detach()
    assert hooks(model) == 0
    assert hooks(copy.deepcopy(model)) == 0
    model(IMAGES.clone())
    assert calls.take() is None


@pytest.mark.parametrize("backward_within", [True, False])
def test_a_step_that_is_run_as_forward_is_no_call(backward_within: bool) -> None:
    model, calls = watched("", "net", redirected=True)
    taken = []

    def step(images: Tensor) -> Tensor:
        loss: Tensor = model(images).sum()
        if backward_within:  # as manual optimisation goes
            taken.append(calls.take())
        return loss

    for _ in range(2):
        model.step = step
        model(IMAGES.clone())
        if not backward_within:
            taken.append(calls.take())
    assert [call is not None and call.name == "" for call in taken] == [True, True]
    assert all(call is not None and call.outputs.shape == (2, 3) for call in taken)


def test_what_a_backward_pass_computes_once_more_does_not_count() -> None:
    model, calls = watched("net")
    for _ in range(2):
        loss = checkpoint(model.net, IMAGES.clone().requires_grad_(), use_reentrant=False).sum()
        assert calls.take() is not None
        with calls.resting():
            loss.backward()
        assert calls.take() is None
