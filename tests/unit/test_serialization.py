"""Records go through files and back without a loss, and those of another format are refused by name."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers.records import viewed
from torch import Tensor

from acsp_lightning import PruningStep
from acsp_lightning.report import read_step
from acsp_lightning.serialization import FORMAT, decode, encode, from_record, to_record

ADVICE = "Ask the one who wrote it."


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    values: Tensor
    colour: Colour


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    share: float
    side: Literal["in", "out"]
    parts: Mapping[str, Inner]
    pair: tuple[int, float]
    series: Sequence[int]
    items: list[str]
    anything: Mapping[Any, Any]
    maybe: Inner | None = None
    flag: bool = True


def outer(**changes: Any) -> Outer:
    values: dict[str, Any] = {
        "name": "n",
        "count": 3,
        "share": 0.5,
        "side": "in",
        "parts": {"a": Inner(torch.tensor([1, 2]), Colour.RED)},
        "pair": (1, 2.5),
        "series": (1, 2, 3),
        "items": ["x", "y"],
        "anything": {"k": [1, {"z": None}]},
    }
    return Outer(**{**values, **changes})


def same(a: Any, b: Any) -> bool:
    return bool(json.dumps(encode(a, json=True)) == json.dumps(encode(b, json=True))) and type(
        a
    ) is type(b)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    "record",
    [
        outer(),
        outer(maybe=Inner(torch.tensor([[0.5, 1.0]], dtype=torch.float64), Colour.BLUE), flag=False),
        outer(parts={}, series=(), items=[], anything={}),
        outer(share=2.0, count=0),
    ],
)
def test_round_trip(record: Outer, as_json: bool, tmp_path: Path) -> None:
    data = to_record(record, json=as_json)
    if as_json:
        data = json.loads(json.dumps(data, allow_nan=False))
    else:
        torch.save(data, tmp_path / "record.pt")
        data = torch.load(tmp_path / "record.pt", weights_only=True)
    assert data["format"] == FORMAT
    found = from_record(Outer, data, ADVICE)
    assert same(found, record)
    assert isinstance(found.series, tuple)
    assert isinstance(found.items, list)
    assert all(part.colour in Colour for part in found.parts.values())


def test_tensors_keep_dtype_and_values_in_a_checkpoint() -> None:
    values = torch.tensor([1.5, math.nan, math.inf], requires_grad=True)
    found = decode(Inner, encode(Inner(values, Colour.RED))).values
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found.nan_to_num(9), values.detach().nan_to_num(9))


def test_numbers_of_numpy_become_plain(tmp_path: Path) -> None:
    data = encode({"a": np.float64(0.5), "b": [np.float64(1)], "c": (np.float64(2),)})
    torch.save(data, tmp_path / "data.pt")
    assert torch.load(tmp_path / "data.pt", weights_only=True) == {"a": 0.5, "b": [1.0], "c": (2.0,)}


def test_keys_and_containers_of_an_optimizer_state_stay_as_they_are() -> None:
    state = {0: {"step": torch.tensor(3.0), "betas": (0.9, 0.99), "list": [1]}}
    assert same(encode(state), state)
    assert list(encode(state)) == [0]
    assert isinstance(encode(state)[0]["betas"], tuple)


def test_what_could_not_come_back_is_refused() -> None:
    with pytest.raises(TypeError, match="a set cannot be stored"):
        encode({"a": {1, 2}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "3"}, r"Outer\.count is '3'"),
        ({"count": True}, r"Outer\.count is 'True'"),
        ({"side": "up"}, r"Outer\.side is 'up'"),
        ({"pair": [1]}, r"Outer\.pair is '\[1\]'"),
        ({"parts": {"a": {"values": [1], "colour": "green"}}}, r"parts\['a'\]\.colour is 'green'"),
        ({"parts": {"a": {"values": ["x"], "colour": "red"}}}, "values holds no array of numbers"),
        ({"more": 1}, "Outer has the fields .* another version"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_record(Outer, {**to_record(outer(), json=True), **change}, ADVICE)


@pytest.mark.parametrize("mark", [None, 1, 3])
def test_another_format_is_refused_with_advice(mark: int | None) -> None:
    data = {**encode(outer(), json=True), **({} if mark is None else {"format": mark})}
    with pytest.raises(ValueError, match=rf"written by another version.*{ADVICE}"):
        from_record(Outer, data, ADVICE)


def test_what_is_no_record_at_all() -> None:
    with pytest.raises(ValueError, match="it is a list"):
        from_record(Outer, [1], ADVICE)


def test_a_report_without_a_format_mark_is_refused_by_name(tmp_path: Path) -> None:
    data = viewed().to_dict()
    del data["format"]
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"report\.json is no record .*no format mark.*report\.html"):
        read_step(tmp_path / "report.json")


def test_a_step_with_everything_comes_back_from_a_checkpoint() -> None:
    step = viewed()
    assert same(decode(PruningStep, encode(step)), step)
