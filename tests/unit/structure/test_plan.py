import json
from dataclasses import replace

import pytest
import torch
from helpers.networks import CUT
from helpers.oracle import built, good_cuts, inputs_of, offered, random_plan
from torch import nn

from acsp_lightning import PruningPlan
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.plan import SideCut, build_plan


@pytest.mark.parametrize("kept", [(), (1, 0), (1, 1), (-1, 2), (3, 8)])
def test_impossible_cuts_are_refused(kept):
    with pytest.raises(ValueError, match=r"'conv' \(out\) keeps"):
        SideCut("conv", "out", 8, kept)


def test_impossible_plans_are_refused():
    with pytest.raises(ValueError, match="side of 'conv': 'up' is no side"):
        SideCut("conv", "up", 8, (0,))
    with pytest.raises(ValueError, match=r"cuts '0' \(out\) 2 times"):
        PruningPlan((*good_cuts(), good_cuts()[0]))


@pytest.mark.parametrize("data", [{}, {"cuts": [{"layer": "0"}]}, {"cuts": 3}, {"cuts": ["conv"]}, []])
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(ValueError, match="no pruning plan"):
        PruningPlan.from_dict(data)


def test_stored_plans_are_checked():
    data = PruningPlan(good_cuts()).to_dict()
    data["cuts"][1]["kept"] = [7, 8]
    with pytest.raises(ValueError, match=r"'1' \(out\) keeps 2 positions of 8"):
        PruningPlan.from_dict(data)


@pytest.mark.parametrize("name", ["flatten", "inception", "residual_stream"])
def test_json_round_trip(name):
    case = CUT[name]
    plan = random_plan(offered(built(case), inputs_of(case), residual=True).groups, seed=0)
    again = PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert len(again) == len(plan) > 0


def test_weights_only_checkpoints_hold_a_plan(tmp_path):
    plan = PruningPlan(good_cuts())
    torch.save(plan.to_dict(), tmp_path / "plan.pt")
    assert PruningPlan.from_dict(torch.load(tmp_path / "plan.pt", weights_only=True)) == plan


def test_plan_answers():
    plan = PruningPlan(good_cuts())
    assert plan.kept("3", "in") == (0, 1, 5)
    assert plan.kept("3", "out") is None
    assert [cut.layer for cut in plan] == ["0", "1", "3"]


def chain_groups():
    case = CUT["plain"]
    return offered(built(case), inputs_of(case)).groups


def test_plans_do_not_depend_on_the_order_of_asking():
    groups = chain_groups()
    kept = {"0": [1, 2], "3": [0], "7": [4, 5]}
    assert build_plan(groups, kept) == build_plan(groups, dict(reversed(kept.items())))


def test_groups_that_keep_everything_are_not_in_the_plan():
    assert build_plan(chain_groups(), {"0": range(8)}) == PruningPlan()
    assert {cut.layer for cut in build_plan(chain_groups(), {"0": range(8), "7": [1]})} == {"7", "10"}


def test_plans_name_groups_and_channels():
    with pytest.raises(ValueError, match=r"no group is named 'conv'; there are \['0', '3', '7'\]"):
        build_plan(chain_groups(), {"conv": [0]})
    for kept in ([], [8], [-1]):
        with pytest.raises(ValueError, match=r"'0' has channels 0\.\.7"):
            build_plan(chain_groups(), {"0": kept})


def test_flattened_positions_and_concatenations_by_hand():
    group_a = ChannelGroup(
        "a",
        2,
        (LayerSide("a", "out", 2, (0, 1), (0, 1)),),
        (),
        (LayerSide("fc", "in", 10, (0, 1, 2, 3), (0, 0, 1, 1)),),
        residual=False,
    )
    group_b = ChannelGroup(
        "b",
        3,
        (LayerSide("b", "out", 3, (0, 1, 2), (0, 1, 2)),),
        (),
        (LayerSide("fc", "in", 10, (4, 5, 6, 7, 8, 9), (0, 0, 1, 1, 2, 2)),),
        residual=False,
    )
    plan = build_plan([group_a, group_b], {"b": [0, 2], "a": [1]})
    assert plan.kept("a", "out") == (1,)
    assert plan.kept("b", "out") == (0, 2)
    assert plan.kept("fc", "in") == (2, 3, 4, 5, 8, 9)


def test_the_part_of_a_submodule_under_its_names():
    model = nn.Module()
    model.whole = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    model.some = nn.Sequential(model.whole[1], model.whole[3])
    plan = PruningPlan(tuple(replace(cut, layer=f"whole.{cut.layer}") for cut in good_cuts()))
    assert plan.part(model, "") == plan
    assert plan.part(model, "whole") == PruningPlan(good_cuts())
    assert [(cut.layer, cut.side) for cut in plan.part(model, "some")] == [("0", "out"), ("1", "in")]
    assert [(cut.layer, cut.side) for cut in plan.part(model, "whole.3")] == [("", "in")]
    assert len(plan.part(model, "whole.2")) == 0
