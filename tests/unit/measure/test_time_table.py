"""Tables of times: what is timed once, what a file keeps, and which files are of use."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.clockwork import compared
from torch import nn

from acsp_lightning.measure import time_table
from acsp_lightning.measure.layer_times import Call, key_of
from acsp_lightning.measure.time_table import (
    Profile,
    StoredTimes,
    TimedNetwork,
    TimeTable,
    conditions,
    kept_times,
)

ROW = Call((2, 4), torch.float32, channels_last=False)


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
    monkeypatch.setattr(time_table, "MOST_BYTES", 4 * (5 * 9 + 8) + 1)  # weights, biases, input
    stopwatch = Recorder()
    TimeTable({}, stopwatch).of([linear(width) for width in (9, 3, 20, 2, 2, 1)], 1.0)
    assert stopwatch.parts == [[9], [3], [20], [2, 1]]


def test_a_file_has_what_was_written(tmp_path: Path) -> None:
    network = TimedNetwork(0.3, compared(0.5, 0.25))
    path = tmp_path / "deep" / "times.json"
    for written in (
        StoredTimes({"device": "here"}, {"a": 0.25}),
        Profile({"device": "here"}, {"a": 0.25}, (network,), "batch 1"),
    ):
        written.write(path)
        assert type(written).read(path) == written
    replace(written, networks=(replace(network, total=0.0),)).write(path)
    with pytest.raises(ValueError, match=r"it has a time of 0\.0 s\.$"):
        Profile.read(path)


def test_times_of_layers_are_no_profile_and_a_profile_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    StoredTimes({}, {"a": 0.25}).write(path)
    with pytest.raises(ValueError, match=r"must have .*'networks'"):
        Profile.read(path)
    Profile(conditions(torch.device("cpu")), {"a": 0.25}, (), "batch 1").write(path)
    with kept_times(path, nn.Linear(2, 2)) as table:
        assert table.seconds == {}


def test_precision_of_products_is_a_condition() -> None:
    before = conditions(torch.device("cpu"))
    known = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert conditions(torch.device("cpu")) != before
        assert conditions(torch.device("cpu"), "other 1.0") == conditions(
            torch.device("cpu"), "other 1.0"
        )
    finally:
        torch.set_float32_matmul_precision(known)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 2, "conditions": 3}',
        '{"format": 1, "conditions": {}, "layers": {}}',
        '{"format": 2, "conditions": {}, "layers": {"a": 0}}',
        '{"format": 2, "conditions": {}, "layers": {"a": "fast"}}',
    ],
)
def test_what_is_no_such_file_is_refused_and_as_a_store_passed_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"must|Expecting|not a record|no such thing|another version|a time of 0"
    ):
        StoredTimes.read(path)
    with kept_times(path, nn.Linear(2, 2)) as table:
        assert table.seconds == {}
    assert path.read_text() == text


def test_times_of_other_conditions_are_not_taken(tmp_path: Path) -> None:
    path, found = tmp_path / "times.json", conditions(torch.device("cpu"))
    assert found["threads"] == str(torch.get_num_threads())
    for changed in found:
        StoredTimes({**found, changed: "other"}, {"a": 0.25}).write(path)
        with kept_times(path, nn.Linear(2, 2)) as table:
            assert table.seconds == {}, changed
    StoredTimes(found, {"a": 0.25}).write(path)
    with kept_times(path, nn.Linear(2, 2)) as table:
        assert table.seconds == {"a": 0.25}


def test_a_table_is_written_if_it_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    model = nn.Linear(2, 2)
    with kept_times(path, model):
        pass
    assert not path.exists()

    def refused() -> None:
        with kept_times(path, model) as table:
            table.seconds["a"] = 0.5
            raise ValueError("too much")

    with pytest.raises(ValueError, match="too much"):
        refused()
    with kept_times(path, model) as table:
        assert table.seconds == {"a": 0.5}
    with kept_times(None, model) as table:
        assert table.seconds == {}


def test_what_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.warns(UserWarning, match="could not be written to .* be taken again"),
        kept_times(tmp_path / "file" / "times.json", nn.Linear(2, 2)) as table,
    ):
        table.seconds["a"] = 0.5
