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
    call = calls.last
    assert call is not None
    assert (call.name, call.keywords) == ("", {"scale": 3.0})
    assert torch.equal(call.arguments[0], IMAGES)
    assert call.outputs is outputs
    assert calls.last is not None
    calls.drop()
    assert calls.last is None


def test_a_part_that_is_called_by_itself_counts() -> None:
    model, calls = watched("", "net")
    model(IMAGES.clone())
    outputs = model.net(IMAGES)
    call = calls.last
    assert call is not None
    assert call.name == "net"
    assert call.outputs is outputs


def test_calls_without_gradients_and_other_copies_do_not_count() -> None:
    model, calls = watched("", "net")
    with torch.no_grad():
        model(IMAGES.clone())
    assert calls.last is None
    calls.detach()
    assert hooks(model) == 0
    assert hooks(copy.deepcopy(model)) == 0
    model(IMAGES.clone())
    assert calls.last is None


@pytest.mark.parametrize("backward_within", [True, False])
def test_a_step_that_is_run_as_forward_is_no_call(backward_within: bool) -> None:
    model, calls = watched("", "net", redirected=True)
    taken = []

    def step(images: Tensor) -> Tensor:
        loss: Tensor = model(images).sum()
        if backward_within:  # as manual optimisation goes
            taken.append(calls.last)
        return loss

    for _ in range(2):
        model.step = step
        model(IMAGES.clone())
        if not backward_within:
            taken.append(calls.last)
        calls.drop()
    assert [call is not None and call.name == "" for call in taken] == [True, True]
    assert all(call is not None and call.outputs.shape == (2, 3) for call in taken)


def test_what_a_backward_pass_computes_once_more_does_not_count() -> None:
    model, calls = watched("net")
    for _ in range(2):
        loss = checkpoint(model.net, IMAGES.clone().requires_grad_(), use_reentrant=False).sum()
        assert calls.last is not None
        calls.drop()
        with calls.resting():
            loss.backward()
        assert calls.last is None


def test_a_reentrant_checkpoint_runs_forward_in_the_backward_pass() -> None:
    """The call that counts is one without gradients, and the one with gradients comes too late."""
    model, calls = watched("net")
    images = IMAGES.clone().requires_grad_()
    loss = checkpoint(model.net, images, use_reentrant=True).sum()
    assert calls.last is None
    with calls.resting():
        loss.backward()
    assert calls.last is None
    assert images.grad is not None


def test_of_several_calls_the_last_counts() -> None:
    model, calls = watched("", "net")
    for factor in (1.0, 2.0):
        outputs = model(IMAGES * factor)
    with torch.no_grad():
        model(IMAGES * 3)
    call = calls.last
    assert call is not None
    assert call.outputs is outputs
    assert torch.equal(call.arguments[0], IMAGES * 2)


def test_a_call_that_raises_leaves_the_one_before_it() -> None:
    model, calls = watched("", "net")
    outputs = model(IMAGES.clone())
    for wrong in (torch.ones(2, 5), None):
        with pytest.raises((RuntimeError, AttributeError)):
            model(wrong)  # raises in the inner module, and in the outer one
        assert calls.last is not None
        assert calls.last.outputs is outputs
    again = model(IMAGES.clone())
    assert calls.last.name == ""
    assert calls.last.outputs is again


@pytest.mark.parametrize("first", [True, False])
def test_a_hook_that_raises_leaves_the_call_before_it(first: bool) -> None:
    """Whether it stands before those of the watch or behind them."""
    model = Outer()
    stopped = [False]

    def stop(*_: Any) -> None:
        if stopped[0]:
            raise ValueError("stopped")

    if first:
        model.net.register_forward_pre_hook(stop)
    calls = LastCall(model, ["", "net"])
    calls.attach()
    if not first:
        model.net.register_forward_pre_hook(stop)
    for raises in (False, True):
        stopped[0] = raises
        if raises:
            with pytest.raises(ValueError, match="stopped"):
                model(IMAGES.clone())
        else:
            outputs = model(IMAGES.clone())
        assert calls.last is not None
        assert calls.last.outputs is outputs
    stopped[0] = False
    again = model(IMAGES.clone())
    assert calls.last is not None
    assert (calls.last.name, calls.last.outputs) == ("", again)


def test_a_call_goes_on_after_a_part_of_it_has_raised() -> None:
    class Forgiving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.spare = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, images: Tensor) -> Any:
            try:
                return self.net(images)
            except ValueError:
                return self.spare(images)

    def stop(*_: Any) -> None:
        raise ValueError

    model = Forgiving()
    model.net.register_forward_pre_hook(stop)
    calls = LastCall(model, ["", "net"])
    calls.attach()
    outputs = model(IMAGES)
    assert calls.last is not None
    assert (calls.last.name, calls.last.outputs) == ("", outputs)


def test_gradients_within_a_call_without_and_without_within_a_call_with() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 3)

        def forward(self, images: Tensor, inner: bool) -> Tensor:
            with torch.set_grad_enabled(inner):
                first = self.net(images)
            return first + images.sum()

    model = Mixed()
    calls = LastCall(model, ["", "net"])
    calls.attach()
    outputs = model(IMAGES, False)
    assert calls.last is not None
    assert (calls.last.name, calls.last.outputs) == ("", outputs)
    with torch.no_grad():
        model(2 * IMAGES, True)
    assert calls.last.name == "net"
    assert torch.equal(calls.last.arguments[0], 2 * IMAGES)


def test_a_call_without_gradients_in_a_step_does_not_end_it() -> None:
    model, calls = watched("", "net", redirected=True)

    def step(images: Tensor) -> Any:
        with torch.no_grad():
            model(images + 1)
        return model(images)

    model.step = step
    outputs = model(IMAGES.clone())
    assert calls.last is not None
    assert calls.last.outputs is outputs
    assert torch.equal(calls.last.arguments[0], IMAGES)


def test_a_new_watch_knows_nothing_of_the_one_before() -> None:
    model, calls = watched("net")
    model(IMAGES.clone())
    calls.attach()
    assert calls.last is None
    assert hooks(model) == 2
