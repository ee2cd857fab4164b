import json
import textwrap
from dataclasses import replace

import pytest
import torch
from helpers.records import step, trade_off, traded, viewed

from acsp_lightning import PruningStep
from acsp_lightning.functional import WidthReason
from acsp_lightning.report.step import Outcome, Verdict, reference_accuracy


def again(found: PruningStep) -> PruningStep:
    halved = {n: replace(s, reason=WidthReason.HALVED) for n, s in found.selections.items()}
    return replace(found, selections=halved)


@pytest.mark.parametrize(
    ("found", "title"),
    [
        (step(epoch=4), "Cut after epoch 4"),
        (again(step(epoch=0)), "Cut after epoch 0, again, at half the depth"),
        (replace(step(), epoch=None), "Preview: what a cut would do"),
    ],
)
def test_titles(found: PruningStep, title: str) -> None:
    assert found.title == title


@pytest.mark.parametrize(
    ("outcome", "rolled_back"),
    [
        (Outcome.RECOVERED, False),
        (Outcome.HALVED, True),
        (Outcome.LEFT, True),
        (Outcome.UNJUDGED, False),
    ],
)
def test_what_stands_was_not_rolled_back(outcome: Outcome, rolled_back: bool) -> None:
    assert replace(step(), verdict=Verdict("val_acc", 0.5, 0.5, outcome)).rolled_back is rolled_back


def test_no_verdict_without_a_guard() -> None:
    assert not step().rolled_back
    assert not step().again


def test_a_record_goes_through_plain_data() -> None:
    found = viewed()
    same = PruningStep.from_dict(found.to_dict())
    assert (same.plan, same.layers, same.before, same.after) == (
        found.plan, found.layers, found.before, found.after
    )  # fmt: skip
    assert (same.verdict, same.latency, same.network) == (found.verdict, found.latency, found.network)
    assert torch.equal(same.selections["conv"].kept, found.selections["conv"].kept)
    assert torch.equal(same.maps["conv"].places, found.maps["conv"].places)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("tolerated", [None, 0, 2])
def test_a_trade_off_goes_through_json(timed: bool, tolerated: int | None) -> None:
    found = replace(traded(), trade_off=trade_off(timed, tolerated))
    same = PruningStep.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert same.trade_off == found.trade_off
    assert same.selections["conv"].reason is WidthReason.MEASURED_KNEE
    bare = replace(found, trade_off=None)
    assert PruningStep.from_dict(json.loads(json.dumps(bare.to_dict()))).trade_off is None


def test_a_tolerance_counts_from_the_first_network_that_was_measured() -> None:
    first, other = trade_off(), trade_off()
    depths = (replace(first.depths[0], fidelity=replace(first.depths[0].fidelity, accuracy=0.5)),)
    later = replace(traded(), trade_off=replace(other, depths=depths + other.depths[1:]))
    assert reference_accuracy([]) is None
    assert reference_accuracy([step(), step()]) is None
    assert reference_accuracy([traded(), later]) == 0.75
    assert reference_accuracy([step(), later, traded()]) == 0.5
    rolled_back = replace(traded(), verdict=Verdict("val_acc", 0.5, 0.1, Outcome.LEFT))
    assert reference_accuracy([rolled_back, later]) == 0.75, (
        "the first network is the first all the same"
    )


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PruningStep\.epoch is 'four'"):
        PruningStep.from_dict({**step().to_dict(), "epoch": "four"})
    with pytest.raises(ValueError, match=r"Read the report\.html beside it"):
        PruningStep.from_dict({**step().to_dict(), "format": 0})


@pytest.mark.parametrize("layers", [0, 1, 54, 1000])
def test_a_summary_fits_a_screen(layers: int) -> None:
    names = [f"backbone.layer{place}.{'block.' * 30}conv{place}" for place in range(layers)]
    found = replace(viewed(), layers={name: (64, 64 - place) for place, name in enumerate(names)})
    text = repr(found)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 80)]
    assert len(lines) <= 10
    assert f"{max(layers - 1, 0)} of {layers} layers narrower" in text
    for words in ("Cut after epoch 4", "6,000 -> 3,000", "60,000 -> 30,000", "75.00% -> 50.00%"):
        assert words in text
    assert "guard: recovered" in text


def test_a_summary_names_layers_and_leaves_out_what_is_not_known() -> None:
    assert "1 of 1 layers narrower: conv 6 -> 3" in repr(step())
    assert "accuracy" not in repr(step())
    assert repr([step(), step()]).count("PruningStep") == 2


def test_classes_have_names_or_their_numbers() -> None:
    named = replace(step(), class_names=("ant", "bee"))
    assert [named.class_name(index) for index in range(3)] == ["ant", "bee", "2"]
