"""Conditions of a timing: what they change of a network and its inputs, and what they refuse."""

import copy
from typing import Any

import pytest
import torch
from helpers.fits import conv_net, same_state, snapshot

from acsp_lightning.measure.conditions import LatencyAt

IMAGES = torch.rand(2, 1, 6, 6)


def test_a_network_is_itself_where_nothing_is_changed() -> None:
    model = conv_net()
    assert LatencyAt(batch_size=3, compiled=True).network(model) is model
    (images,) = LatencyAt(batch_size=5).inputs((IMAGES,))
    assert torch.equal(images, IMAGES[[0, 1, 0, 1, 0]])


def test_a_copy_is_converted_and_the_network_left() -> None:
    model = conv_net()
    before, kept = snapshot(model), copy.deepcopy(model)
    at = LatencyAt(channels_last=True, precision="bfloat16")
    found = at.network(model)
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    assert found[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert same_state(snapshot(model), before)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert [type(m) for m in found.modules()] == [type(m) for m in kept.modules()]
    images, labels = at.inputs((IMAGES, torch.arange(2)))
    assert images.dtype == torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64, "labels and indices are not converted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "latency_at.batch_size is 0; it must be one integer >= 1, such as 32"),
        ({"batch_size": [1, 8]}, r"batch_size is \[1, 8\]; it must be one integer"),
        ({"compiled": 1}, "latency_at.compiled is 1; it must be True or False"),
        ({"channels_last": "no"}, "latency_at.channels_last is 'no'"),
        ({"precision": "int8"}, "latency_at.precision is 'int8'; it must be one of float32, float16"),
    ],
)
def test_what_is_no_condition_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatencyAt(**options)


def test_conditions_in_words() -> None:
    assert str(LatencyAt()) == "batch 1"
    at = LatencyAt(8, compiled=True, channels_last=True, precision="float16")
    assert str(at) == "batch 8, compiled, channels last, float16"
