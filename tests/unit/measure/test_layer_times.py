"""Single layers on the clock: which calls are seen, what is timed once, and what is stored."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import hooks, same_state, snapshot
from torch import Tensor, nn

from acsp_lightning.measure import layer_times
from acsp_lightning.measure.layer_times import (
    Call,
    TimeTable,
    conditions,
    key_of,
    layer_calls,
    read_times,
    stored_times,
    time_layers,
    write_times,
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


class Recorder:
    """A stopwatch that takes the number of outputs for seconds, and notes what it was given."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []
        self.seconds: list[float] = []

    def __call__(self, layers: Sequence[tuple[nn.Module, Call]], seconds: float) -> list[float]:
        self.parts.append([len(layer.weight) for layer, _ in layers])  # type: ignore[arg-type]
        self.seconds.append(seconds)
        return [float(len(layer.weight)) for layer, _ in layers]  # type: ignore[arg-type]


def linear(width: int) -> Any:
    return lambda: (nn.Linear(4, width), ROW)


def test_every_layer_is_timed_once() -> None:
    stopwatch = Recorder()
    table = TimeTable({key_of(nn.Linear(4, 2), ROW): 7.0}, stopwatch)
    assert table.of([linear(3), linear(2), linear(3), linear(5)], 8.0) == [3, 7, 3, 5]
    assert stopwatch.parts == [[3, 5]]
    assert stopwatch.seconds == [4.0], "half of the time for half of the layers"
    assert table.of([linear(5)], 8.0) == [5]
    assert stopwatch.parts == [[3, 5]]


def test_large_layers_are_not_held_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "MOST_BYTES", 4 * (5 * 9 + 8) + 1)  # weights, biases, input
    stopwatch = Recorder()
    TimeTable({}, stopwatch).of([linear(width) for width in (9, 3, 20, 2, 2, 1)], 1.0)
    assert stopwatch.parts == [[9], [3], [20], [2, 1]]


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


def test_times_are_stored_and_read_under_the_same_conditions(tmp_path: Path) -> None:
    path, found = tmp_path / "deep" / "times.json", conditions(torch.device("cpu"))
    write_times(path, {"a": 0.25}, found)
    assert read_times(path, found) == {"a": 0.25}
    assert read_times(path, {**found, "threads": "99"}) == {}
    assert read_times(tmp_path / "none.json", found) == {}
    for text in ("{", "[]", '{"conditions": 3}', json.dumps({"conditions": found, "seconds": 3})):
        path.write_text(text)
        assert read_times(path, found) == {}


def test_a_table_is_written_if_it_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    model = nn.Linear(2, 2)
    with stored_times(path, model):
        pass
    assert not path.exists()

    def refused() -> None:
        with stored_times(path, model) as table:
            table.seconds["a"] = 0.5
            raise ValueError("too much")

    with pytest.raises(ValueError, match="too much"):
        refused()
    with stored_times(path, model) as table:
        assert table.seconds == {"a": 0.5}
    with stored_times(None, model) as table:
        assert table.seconds == {}


def test_what_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.warns(UserWarning, match="could not be written to .* be taken again"),
        stored_times(tmp_path / "file" / "times.json", nn.Linear(2, 2)) as table,
    ):
        table.seconds["a"] = 0.5
