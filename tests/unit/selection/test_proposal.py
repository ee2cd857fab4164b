"""What is proposed, against networks that were really cut to it."""

import copy
from typing import Any

import pytest
from helpers.captured import IMAGES, captured
from helpers.fits import conv_net, same_state, snapshot
from torch import nn

from acsp_lightning import PruningSettings, SelectionConfig, apply_plan, measure_complexity
from acsp_lightning.capture.statistics import Captured
from acsp_lightning.functional import WidthDecision, WidthReason
from acsp_lightning.selection import proposal
from acsp_lightning.selection.proposal import Proposal, propose
from acsp_lightning.selection.weighing import weigh_groups


def proposed(model: nn.Module, options: dict[str, Any], **arguments: Any) -> Proposal:
    groups, activations = captured(model)
    decisions = arguments.pop("decisions", None)
    found = Captured(0, tuple(groups.values()), activations, decisions=decisions)
    settings = PruningSettings(**options)
    weighed = weigh_groups(model, found.groups, activations, settings.selection, decisions=decisions)
    return propose(found, weighed, settings, measure_complexity(model, IMAGES[:1]), **arguments)


KEEP = {"selection": SelectionConfig(keep=0.5)}


def test_the_plan_cuts_to_the_widths_that_were_selected() -> None:
    model = conv_net()
    before = snapshot(model)
    found = proposed(model, KEEP)
    assert same_state(snapshot(model), before), "nothing is cut yet"
    cut = copy.deepcopy(model)
    apply_plan(cut, found.plan)
    widths = {name: len(getattr(cut, name).weight) for name in ("conv1", "conv2", "fc1")}
    assert widths == {"conv1": 4, "conv2": 3, "fc1": 5}
    for name, selection in found.selections.items():
        assert found.plan.kept(name, "out") == tuple(selection.kept.tolist())
    assert set(found.maps) == set(widths)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_a_flops_target_is_met_by_what_is_proposed(share: float) -> None:
    model = conv_net()
    found = proposed(model, {"selection": SelectionConfig(flops=share)})
    apply_plan(model, found.plan)
    assert measure_complexity(model, IMAGES[:1]).flops <= share * found.before.flops


def test_the_target_is_a_share_of_the_initial_network() -> None:
    model = conv_net()
    twice = measure_complexity(model, IMAGES[:2])  # as if it had been cut to half its size before
    found = proposed(model, {"selection": SelectionConfig(flops=0.4)}, initial=twice)
    apply_plan(model, found.plan)
    assert 0.4 * found.before.flops < measure_complexity(model, IMAGES[:1]).flops <= 0.4 * twice.flops


def test_of_groups_that_decide_together_only_the_first_are_cut() -> None:
    found = proposed(conv_net(), {**KEEP, "layers_per_epoch": 2})
    assert [group.name for group in found.groups] == list(found.selections) == ["conv1", "conv2"]
    assert {cut.layer for cut in found.plan} == {"conv1", "bn1", "conv2", "bn2", "fc1"}
    assert found.plan.kept("fc1", "out") is None


def test_widths_that_were_decided_before_are_kept() -> None:
    given = {name: WidthDecision(k, None, WidthReason.HALVED) for name, k in
             (("conv1", 7), ("conv2", 2), ("fc1", 9))}  # fmt: skip
    found = proposed(conv_net(), KEEP, decisions=given)
    assert {name: len(s.kept) for name, s in found.selections.items()} == {
        "conv1": 7, "conv2": 2, "fc1": 9
    }  # fmt: skip
    assert {s.reason for s in found.selections.values()} == {WidthReason.HALVED}


def test_maps_that_fail_cost_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no map")

    monkeypatch.setattr(proposal, "map_groups", fail)
    with pytest.warns(UserWarning, match=r"could not be prepared \(RuntimeError: no map\)"):
        found = proposed(conv_net(), KEEP)
    assert found.maps == {}
    assert len(found.selections) == 3
