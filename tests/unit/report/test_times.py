"""Times of a cut as text: rows of layers and a sentence."""

import dataclasses

import pytest
from helpers.records import depth, network_times, step, trade_off

from acsp_lightning.report import headline, step_table, trade_off_table
from acsp_lightning.report.page import step_page
from acsp_lightning.report.times import layer_rows, milliseconds, summary


def test_layers_are_in_the_order_of_what_is_left_and_add_up() -> None:
    assert list(layer_rows(network_times())) == [
        ("fc<1>", "16.00", "9.00", "8.00", "40.0%", "40.0%"),
        ("conv", "8.00", "5.00", "6.00", "20.0%", "30.0%"),
        ("rest of the network", "16.00", "", "6.00", "40.0%", "30.0%"),
    ]


def test_the_sentence_has_what_was_asked_predicted_and_measured() -> None:
    assert summary(network_times()) == (
        "latency=0.5 asks for 20.00 ms (batch 8, cpu, 2 threads); predicted 20.40 ms; measured 20.00 "
        "ms, 0.500 of the time; the smallest network takes 0.100; 12 s of measuring"
    )
    # The ratio is one of turns, and not of the medians.
    turns = dataclasses.replace(network_times(), measured=0.45)
    assert "measured 18.00 ms, 0.450 of the time" in summary(turns)
    later = dataclasses.replace(network_times(taken=0.8), predicted=None, smallest=None)
    assert summary(later) == (
        "latency=0.5 asks for 25.00 ms (batch 8, cpu, 2 threads); measured 20.00 ms, 0.400 of the "
        "time; 12 s of measuring"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1,500.00"), (0.001, "1.00"), (0.0002, "0.200"), (-0.002, "-2.00")]
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


def test_a_cut_shows_its_times_in_table_line_and_page() -> None:
    found = dataclasses.replace(step(), times=network_times())
    table = " ".join(step_table(found).split())
    assert summary(network_times()) in table
    assert "Layers that hold the network back" in table
    assert "rest of the network 16.00 6.00 40.0% 30.0%" in table
    assert "40.00 -> 20.00 ms (batch 8)" in headline(found)
    page = step_page(found, {})
    assert "<td>fc&lt;1&gt;</td><td>16.00</td>" in page.replace("\n", "")
    assert 'href="#times"' in page
    assert 'id="times"' in page
    for text in (step_table(step()), step_page(step(), {}), headline(step())):
        assert "rest of the network" not in text
        assert " ms" not in text


def test_of_many_layers_the_slowest_are_printed() -> None:
    one = network_times()
    layers = {f"layer{place}": dataclasses.replace(one.layers["conv"], after=1e-4 * place)
              for place in range(30)}  # fmt: skip
    found = dataclasses.replace(step(), times=dataclasses.replace(one, layers=layers))
    table = step_table(found)
    assert "layer29" in table
    assert "layer19 " not in table
    assert "rest of the network" in table
    assert "layer0<" in step_page(found, {})


def test_a_trade_off_shows_milliseconds_beside_flops() -> None:
    known = trade_off()
    depths = tuple(
        dataclasses.replace(one, seconds=0.04 - 0.006 * place) for place, one in enumerate(known.depths)
    )
    table = trade_off_table(dataclasses.replace(known, depths=depths, in_time=3))
    lines = [line.split() for line in table.splitlines()]
    assert [line[:2] for line in lines if line and line[0].endswith("%")] == [
        ["100.0%", "40.00"],
        ["83.3%", "34.00"],
        ["66.7%", "28.00"],
        ["50.0%", "22.00"],
        ["33.3%", "16.00"],
    ]
    assert "milliseconds are predicted" in table
    assert "latency" in table
    assert "milliseconds" not in trade_off_table(known)
    assert depth(3, 0.0).seconds is None
