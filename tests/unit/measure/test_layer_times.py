"""Single layers on the clock: which calls are seen, and how they are timed."""

import pytest
import torch
from helpers.fits import hooks, same_state, snapshot
from torch import Tensor, nn

from acsp_lightning.measure import layer_times
from acsp_lightning.measure.layer_times import (
    Call,
    device_of,
    key_of,
    layer_calls,
    time_layers,
)

ROW = Call((2, 4), torch.float32, channels_last=False)


class Net(nn.Module):
    """Calls one layer twice, one with two arguments, and one with indices."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.names = nn.Embedding(3, 4)
        self.mix = nn.Bilinear(4, 4, 2)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = self.twice(self.twice(x)).mean((2, 3))
        mixed: Tensor = self.mix(x, self.names(torch.zeros(len(x), dtype=torch.int64)))
        return mixed


def test_the_calls_of_layers_with_one_tensor() -> None:
    model = Net()
    before = snapshot(model)
    found = layer_calls(model, (torch.rand(2, 3, 8, 8),))
    shapes = {name: [call.shape for call in calls] for name, calls in found.items()}
    assert shapes == {
        "conv": [(2, 3, 8, 8)],
        "norm": [(2, 4, 8, 8)],
        "twice": [(2, 4, 8, 8), (2, 4, 4, 4)],
    }
    assert same_state(snapshot(model), before)
    assert hooks(model) == 0
    assert model.training


def test_the_memory_format_of_a_call() -> None:
    images = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    (call,) = layer_calls(model, (images,))["0"]
    assert call.channels_last
    example = call.example(torch.device("cpu"))
    assert example.shape == images.shape
    assert example.stride() == images.stride()
    assert call.resized(1, 5).shape == (2, 5, 8, 8)
    assert call.resized(-1, 5).shape == (2, 3, 8, 5)
    assert key_of(model[0], call) != key_of(nn.Conv2d(3, 4, 3), call)


def test_a_key_tells_layers_apart_and_names_alike_layers_alike() -> None:
    layers = [nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(4, 3, bias=False), nn.Identity()]
    assert len({key_of(layer, ROW) for layer in layers}) == 4
    assert key_of(nn.Linear(4, 3), ROW) == key_of(layers[0], ROW)
    assert key_of(layers[0], ROW) != key_of(layers[0], ROW.resized(0, 9))
    half = Call(ROW.shape, torch.float16, channels_last=False)
    assert key_of(layers[0], ROW) != key_of(layers[0], half)


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.calls = seconds, 0

    def forward(self, _: Tensor) -> None:
        import time

        self.calls += 1
        time.sleep(self.seconds)


def test_layers_whose_time_is_known() -> None:
    layers = [Sleeper(0.02), Sleeper(0.002)]
    slow, fast = time_layers([(layer, ROW) for layer in layers], 0.0)
    assert slow >= 0.02
    assert 0.002 <= fast < slow
    assert {layer.calls for layer in layers} == {layer_times.WARM_UP + layer_times.FEWEST_ROUNDS}


def test_time_that_is_left_is_spent_up_to_a_limit() -> None:
    layer = Sleeper(0.0)
    time_layers([(layer, ROW)], 60.0)
    assert layer.calls == layer_times.WARM_UP + layer_times.MOST_ROUNDS


def test_real_layers_take_time() -> None:
    """The only claim about this machine: much more work takes longer."""
    call = Call((8, 64, 24, 24), torch.float32, channels_last=False)
    wide, narrow = nn.Conv2d(64, 128, 3), nn.Conv2d(4, 4, 3)
    large, small = time_layers([(wide, call), (narrow, call.resized(1, 4))], 0.5)
    assert 0 < small < large


def test_the_device_of_layers() -> None:
    layers = [nn.ReLU(), nn.Linear(2, 2, device="meta")]
    assert device_of(layers).type == "meta"
    assert device_of([nn.BatchNorm1d(2, affine=False, device="meta")]).type == "meta"
    assert device_of(layers[:1]) == torch.device("cpu")


def test_layers_on_other_devices_are_refused() -> None:
    layer = nn.Linear(2, 2, device="meta")
    with pytest.raises(
        ValueError, match=r"are on meta; latency is measured on the CPU and on a single GPU"
    ):
        time_layers([(layer, Call((1, 2), torch.float32, channels_last=False))], 0.0)
