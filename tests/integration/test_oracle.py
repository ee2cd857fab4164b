import copy

import pytest
import torch
import torchvision
from helpers.networks import CUT, WHOLE, randomized
from helpers.oracle import assert_cut_is_masked, built, inputs_of, offered, random_plan
from torch import nn

from acsp_lightning import PruningPlan, apply_plan
from acsp_lightning.structure.records import is_record


@pytest.mark.parametrize("name", CUT)
def test_groups_are_the_structure(name):
    case = CUT[name]
    tracing = offered(built(case), inputs_of(case), residual=case.residual)
    assert tuple(group.name for group in tracing.groups) == case.cut
    assert tracing.left_whole == {}


@pytest.mark.parametrize("name", CUT)
def test_cut_equals_channels_zeroed_where_they_are_read(name):
    case = CUT[name]
    model, inputs = built(case), inputs_of(case)
    groups = offered(model, inputs, residual=case.residual).groups
    for seed in range(5):
        plan = random_plan(groups, seed)
        cut = assert_cut_is_masked(model, plan, inputs_of(case, seed=seed + 10))
        assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", CUT)
def test_groups_can_be_cut_one_by_one(name):
    case = CUT[name]
    model, inputs = built(case), inputs_of(case)
    for group in offered(model, inputs, residual=case.residual).groups:
        assert_cut_is_masked(model, random_plan([group], seed=3), inputs)


@pytest.mark.parametrize("name", CUT)
def test_training_goes_on(name):
    case = CUT[name]
    model, inputs = built(case), inputs_of(case)
    groups = offered(model, inputs, residual=case.residual).groups
    cut = assert_cut_is_masked(model, random_plan(groups, seed=0), inputs).train()
    cut(*inputs_of(case, batch=4)).square().sum().backward()
    for parameter_name, parameter in cut.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.shape == parameter.shape


@pytest.mark.parametrize("name", CUT)
def test_state_and_plan_travel_to_another_copy(name):
    case = CUT[name]
    model, inputs = built(case), inputs_of(case)
    groups = offered(model, inputs, residual=case.residual).groups
    plan = random_plan(groups, seed=1)
    cut = assert_cut_is_masked(model, plan, inputs)
    assert [n for n in cut.state_dict() if not is_record(n)] == list(model.state_dict())

    replayed = randomized(case.build(), seed=7)  # other values, no example input
    apply_plan(replayed, PruningPlan.from_dict(plan.to_dict()))
    replayed.load_state_dict(cut.state_dict())
    with torch.no_grad():
        assert torch.equal(replayed(*inputs), cut(*inputs))


@pytest.mark.parametrize("name", WHOLE)
def test_unsafe_structures_are_left_whole_and_the_rest_is_cut(name):
    case = WHOLE[name]
    model, inputs = built(case), inputs_of(case)
    tracing = offered(model, inputs, residual=True)
    names = tuple(group.name for group in tracing.groups)
    assert set(case.cut) <= set(names)
    for group, reason in case.whole.items():
        assert group not in names
        assert reason in tracing.left_whole[group]
    if names:
        for seed in range(5):
            assert_cut_is_masked(model, random_plan(tracing.groups, seed), inputs)


def test_second_cut_follows_the_first():
    case = CUT["inception"]
    model, inputs = built(case), inputs_of(case)
    for seed in range(2):
        groups = offered(model, inputs).groups
        keep_two = [group for group in groups if group.width > 2]
        model = assert_cut_is_masked(model, random_plan(keep_two, seed), inputs)


TORCHVISION = {
    "resnet18": (torchvision.models.resnet18, True),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, True),
    "squeezenet1_1": (torchvision.models.squeezenet1_1, False),
    "densenet121": (torchvision.models.densenet121, False),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, True),
    "regnet_x_400mf": (torchvision.models.regnet_x_400mf, True),
}
# Shuffled again and again, or normalised over channels: what is offered must be right.
TORCHVISION_IN_PART = {
    "shufflenet_v2_x0_5": torchvision.models.shufflenet_v2_x0_5,
    "swin_t": torchvision.models.swin_t,
}


def torchvision_model(build):
    torch.manual_seed(0)
    model = build(num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.data.normal_(0, 0.1)
    return model, (torch.randn(2, 3, 64, 64),)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks(name):
    build, residual = TORCHVISION[name]
    model, inputs = torchvision_model(build)
    tracing = offered(model, inputs, residual=residual)
    assert tracing.left_whole == {}
    cut = assert_cut_is_masked(model, random_plan(tracing.groups, seed=0), inputs, tolerance=1e-5)
    cut.train()(*inputs).sum().backward()
    assert all(p.grad is not None for p in cut.parameters())


@pytest.mark.parametrize("name", TORCHVISION_IN_PART)
def test_torchvision_networks_that_are_cut_in_part(name):
    model, inputs = torchvision_model(TORCHVISION_IN_PART[name])
    tracing = offered(model, inputs, residual=True)
    assert tracing.groups
    assert tracing.left_whole
    assert_cut_is_masked(model, random_plan(tracing.groups, seed=0), inputs, tolerance=1e-5)


def test_copies_do_not_share_what_was_cut():
    case = CUT["plain"]
    model, inputs = built(case), inputs_of(case)
    before = copy.deepcopy(model.state_dict())
    assert_cut_is_masked(model, random_plan(offered(model, inputs).groups, seed=0), inputs)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
