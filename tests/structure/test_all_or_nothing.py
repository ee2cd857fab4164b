import copy
import json

import pytest
import torch
from networks import CUT, Wired, plain
from oracle import built, inputs_of, offered, random_plan
from torch import nn

from acsp_lightning import PruningPlan, apply_plan
from acsp_lightning.structure.groups import ChannelGroup, LayerSide
from acsp_lightning.structure.plan import SideCut, build_plan
from acsp_lightning.structure.pruning import prune


def state(model):
    """Identity, values and sizes of everything in a model."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return (
        [(name, id(tensor), tensor.requires_grad) for name, tensor in tensors],
        [tensor.detach().clone() for _, tensor in tensors],
        [(m.training, {k: v for k, v in vars(m).items() if type(v) is int}) for m in model.modules()],
    )


def assert_same_state(a, b):
    assert a[0] == b[0]
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    assert a[2] == b[2]


def good_cuts():
    return (
        SideCut("0", "out", 8, (0, 1, 5)),
        SideCut("1", "out", 8, (0, 1, 5)),
        SideCut("3", "in", 8, (0, 1, 5)),
    )


BAD = {
    "missing layer": (SideCut("nine", "out", 8, (0,)), r"'nine', which Sequential does not have"),
    "wrong width": (SideCut("7", "out", 11, (0,)), r"'7' with 11 channels on its out side.*has 10"),
    "wrong side": (SideCut("4", "in", 12, (0, 1)), r"'4' on its in side"),
    "no channels": (SideCut("2", "out", 8, (0,)), r"'2', but channels of a ReLU cannot be cut"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("bad_first", [True, False])
def test_plans_that_do_not_fit_change_nothing(name, bad_first):
    bad, message = BAD[name]
    model = plain()
    before = state(model)
    cuts = (bad, *good_cuts()) if bad_first else (*good_cuts(), bad)
    with pytest.raises(ValueError, match=message):
        apply_plan(model, PruningPlan(cuts))
    assert_same_state(before, state(model))
    with pytest.raises(ValueError, match=message):
        prune(model, PruningPlan(cuts), (torch.randn(2, 3, 8, 8),))
    assert_same_state(before, state(model))


def test_a_plan_is_applied_once():
    model = plain()
    apply_plan(model, PruningPlan(good_cuts()))
    before = state(model)
    with pytest.raises(ValueError, match=r"'0' with 8 channels.*has 3.*in the order"):
        apply_plan(model, PruningPlan(good_cuts()))
    assert_same_state(before, state(model))


def test_lazy_and_parametrised_layers_take_no_plan():
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    for cut, reason in ((("0", "out", 8, (0,)), "lazy"), (("1", "out", 4, (0,)), "parametrization")):
        with pytest.raises(ValueError, match=reason):
            apply_plan(model, PruningPlan((SideCut(*cut),)))


def hard_coded(check):
    def forward(net, x):
        return net.head(check(net.pool(torch.relu(net.norm(net.conv(x))))))

    return Wired(
        forward,
        conv=nn.Conv2d(3, 32, 3, padding=1),
        norm=nn.BatchNorm2d(32),
        pool=nn.MaxPool2d(2),
        head=nn.Linear(32 * 4 * 4, 5),
    )


def checked(x):
    assert x.shape[1] == 32, "not mine"
    return x.flatten(1)


def half_plan():
    kept = tuple(range(0, 32, 2))
    flat = tuple(p for p in range(512) if p // 16 in kept)
    return PruningPlan(
        (
            SideCut("conv", "out", 32, kept),
            SideCut("norm", "out", 32, kept),
            SideCut("head", "in", 512, flat),
        )
    )


@pytest.mark.parametrize(
    "check",
    [
        lambda x: x.view(-1, 32 * 4 * 4),
        lambda x: x.view(x.shape[0], 32, 16).flatten(1),
        checked,
    ],
)
def test_forward_that_counts_on_a_width_is_put_back(check):
    model = hard_coded(check)
    x = torch.randn(3, 3, 8, 8)
    model(x).sum().backward()
    model.norm.eval()
    before, expected = state(model), copy.deepcopy(model)(x)
    gradients = [id(p.grad) for p in model.parameters()]
    with pytest.raises(
        RuntimeError, match=r"(?s)Wired does not work after the cut of conv, norm.*put back"
    ):
        prune(model, half_plan(), (x,))
    assert_same_state(before, state(model))
    assert [id(p.grad) for p in model.parameters()] == gradients
    assert torch.equal(model(x), expected)


def test_outputs_of_another_shape_are_put_back():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    before = state(model)
    plan = PruningPlan((SideCut("0", "out", 8, (0, 1)),))
    with pytest.raises(RuntimeError, match=r"outputs of shape \[\(2, 2, 6, 6\)\]"):
        prune(model, plan, (torch.randn(2, 3, 8, 8),))
    assert_same_state(before, state(model))


def test_recovery_that_fails_is_put_back():
    model = hard_coded(lambda x: x.flatten(1))
    x = torch.randn(3, 3, 8, 8)
    before = state(model)
    conv = LayerSide("conv", "out", 32, tuple(range(32)), tuple(range(32)))
    head = LayerSide("head", "in", 512, tuple(range(512)), tuple(p // 16 for p in range(512)))
    group = ChannelGroup("conv", 32, (conv,), (), (head,), residual=False)
    moments = {"head": torch.full((32, 32), float("nan"))}
    with pytest.raises(RuntimeError, match="finite"):
        prune(model, half_plan(), (x,), groups=[group], input_moments=moments)
    assert_same_state(before, state(model))


def test_prune_cuts_what_works():
    model = hard_coded(lambda x: x.flatten(1))
    model.train()
    atomic_write = prune(model, half_plan(), (torch.randn(3, 3, 8, 8),))
    assert [r.name for r in atomic_write] == [
        "conv.weight", "conv.bias", "norm.weight", "norm.bias", "head.weight"
    ]  # fmt: skip
    assert all(model.get_parameter(r.name) is r.new for r in atomic_write)
    assert model.training
    assert (model.conv.out_channels, model.norm.num_features, model.head.in_features) == (16, 16, 256)


@pytest.mark.parametrize("kept", [(), (1, 0), (1, 1), (-1, 2), (3, 8)])
def test_impossible_cuts_are_refused(kept):
    with pytest.raises(ValueError, match=r"'conv' \(out\) keeps"):
        SideCut("conv", "out", 8, kept)


def test_impossible_plans_are_refused():
    with pytest.raises(ValueError, match="side of 'conv' is 'up'"):
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
