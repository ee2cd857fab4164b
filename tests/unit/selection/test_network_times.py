"""Records of times: shares, and plain data and back."""

import json

import pytest
from helpers.records import network_times

from acsp_lightning.selection.network_times import NetworkTimes
from acsp_lightning.serialization import from_record, to_record


def test_shares_of_the_network_before_and_of_the_first() -> None:
    times = network_times(asked=0.5, taken=0.8, before=0.04, after=0.03)
    assert times.share == pytest.approx(0.75)
    assert times.reached == pytest.approx(0.6)


def test_a_record_comes_back_from_json() -> None:
    times = network_times()
    text = json.dumps(to_record(times, json=True))
    assert from_record(NetworkTimes, json.loads(text), "") == times
