from dataclasses import replace

import pytest
import torch
from helpers.records import step, viewed

from acsp_lightning import PruningStep
from acsp_lightning.functional import WidthReason
from acsp_lightning.report.step import Outcome, Verdict


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


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PruningStep\.epoch is 'four'"):
        PruningStep.from_dict({**step().to_dict(), "epoch": "four"})
    with pytest.raises(ValueError, match=r"Read the report\.html beside it"):
        PruningStep.from_dict({**step().to_dict(), "format": 0})
