"""Copies of networks that PyTorch refuses to copy, or can only half copy."""

import threading
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from helpers.fits import conv_net, same_state, snapshot
from torch import nn
from torch.nn import functional

from acsp_lightning.structure.copying import check_copyable, eager_copy

IMAGES = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_tensors_with_a_history_are_copied_without_it() -> None:
    net: Any = conv_net()
    net.last = {"losses": [net(IMAGES).sum()]}
    copy = eager_copy(net)
    (loss,) = copy.last["losses"]
    assert loss == net.last["losses"][0]
    assert loss is not net.last["losses"][0]
    assert loss.is_leaf
    assert net.last["losses"][0].grad_fn is not None


def test_weights_that_hooks_compute() -> None:
    net: Any = conv_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(net.conv1)
    nn.utils.spectral_norm(net.conv2)
    net(IMAGES)
    net.eval()
    copy = eager_copy(net)
    assert same_state(snapshot(copy), snapshot(net))
    assert torch.equal(copy(IMAGES), net(IMAGES))
    with torch.no_grad():
        net.conv1.weight_g.mul_(2)
    expected = net(IMAGES)
    assert not torch.equal(copy(IMAGES), expected)
    copy.load_state_dict(net.state_dict())
    assert torch.equal(copy(IMAGES), expected)


def test_a_copy_shares_no_tensor() -> None:
    net = conv_net()
    mine = {t.data_ptr() for t in net.state_dict().values()}
    copied = eager_copy(net)
    assert not mine & {t.data_ptr() for t in copied.state_dict().values()}
    assert all(isinstance(p, nn.Parameter) for p in copied.parameters())


class Scaled(nn.Parameter):
    """A parameter that remembers more than its data."""

    scale = 1.0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Scaled":
        copied = Scaled(self.data.clone(), self.requires_grad)
        copied.scale = self.scale
        return copied


def test_parameters_whose_memory_is_shared() -> None:
    """Usual ones; others are copied as ever."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4, bias=False), nn.Linear(4, 5))
    own = Scaled(torch.ones(4, 3))
    own.scale = 2.0
    net[1].weight = own
    with torch.inference_mode():
        net[2] = nn.Linear(4, 5)
    net[0].weight.requires_grad_(False)
    copied: Any = eager_copy(net, net.parameters())
    assert copied[0].weight.data_ptr() == net[0].weight.data_ptr()
    assert copied[0].weight is not net[0].weight
    assert not copied[0].weight.requires_grad
    assert copied[1].weight.data_ptr() != own.data_ptr()
    assert (type(copied[1].weight), copied[1].weight.scale) == (Scaled, 2.0)
    assert copied[2].weight.data_ptr() != net[2].weight.data_ptr()


@pytest.mark.parametrize("make", [eager_copy, check_copyable])
def test_what_cannot_be_copied_is_named(make: Any) -> None:
    net: Any = conv_net()
    net.register_forward_hook(net.bn1.forward)  # which belongs to a module that can be
    net.relu2.lock = threading.Lock()
    net.relu2.again = net.relu2
    with pytest.raises(TypeError, match=r"copy of Sequential .* 'relu2\.lock' \(lock\).*__getstate__"):
        make(net)
    del net.relu2.lock
    make(net)
    net.stream = (value for value in range(3))
    with pytest.raises(TypeError, match=r"'stream' \(generator\)"):
        make(net)


def test_what_a_module_leaves_out_is_not_named() -> None:
    class Reserved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()
            self.net = conv_net()

        def __getstate__(self) -> dict[str, Any]:
            return {**vars(self), "lock": None}

    reserved: Any = Reserved()
    check_copyable(reserved)
    reserved.other = threading.Lock()
    with pytest.raises(TypeError, match="'other'"):
        check_copyable(reserved)


def test_a_check_copies_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    net = conv_net()
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", refuse)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    check_copyable(net)


def test_an_error_of_a_module_itself_stays() -> None:
    class Single(nn.Module):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("there is one alone")

    with pytest.raises(RuntimeError, match="there is one alone"):
        check_copyable(nn.Sequential(Single()))


class Asking(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Any) -> Any:
        self.log("mean", images.mean())
        self.log_dict({"largest": images.max()})
        return self.net(images) * cast(Any, self.trainer).factor


def test_a_copy_of_a_module_in_a_fit_asks_the_same_trainer_and_logs_nothing() -> None:
    trainer: Any = SimpleNamespace(factor=2)
    module = Asking(nn.Sequential(Asking(conv_net())))
    for part in (module, module.net[0]):  # type: ignore[index]
        part.trainer = trainer
    copied = eager_copy(module)
    assert copied.trainer is trainer
    assert torch.equal(copied.eval()(IMAGES), 4 * conv_net().eval()(IMAGES))
    assert "log" not in vars(module)


class Unique:
    """As a Trainer is, of which there cannot be two."""

    def __deepcopy__(self, memo: object) -> None:
        raise TypeError("one is enough")


def test_a_copy_takes_along_what_is_of_the_network_and_shares_factories() -> None:
    """An optimizer's factory from a command line holds the Trainer; a partial method holds the layer."""
    layer = nn.Linear(3, 3)
    layer.optimizer = partial(torch.optim.SGD, Unique(), lr=0.1)
    layer.again = partial(layer.forward)
    layer.with_weight = partial(functional.linear, weight=layer.weight)
    copied = eager_copy(nn.Sequential(layer))[0]
    assert copied.optimizer is layer.optimizer
    assert copied.again.func.__self__ is copied
    assert copied.with_weight.keywords["weight"] is copied.weight
