import copy

import pytest
import torch
from helpers.networks import CUT, plain, three_dimensional
from helpers.oracle import assert_same_state, built, good_cuts, inputs_of, offered, random_plan, state
from helpers.structures import STRUCTURES
from torch import nn

from acsp_lightning import PruningPlan, apply_plan
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.plan import SideCut
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.records import is_record
from acsp_lightning.structure.surgery import parameters_to_slice, reversible_cut

X = (torch.randn(2, 3, 8, 8),)


def plan_of(model, inputs=X):
    return random_plan(offered(model, inputs).groups, seed=0)


def test_requires_grad_and_flags():
    model = plain().train()
    model[3].weight.requires_grad_(False)
    model[4].requires_grad_(False).eval()
    plan = plan_of(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    apply_plan(model, plan)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert [m.training for m in model.modules()] == modes


def one_by_one():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(6, 8, (1, 3)),
        nn.ConvTranspose2d(8, 6, 1),
        nn.Conv2d(6, 4, 3),
    )


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_memory_format_in_two_dimensions(layout):
    """As a network of the cut widths would have it, were it converted itself."""
    model = one_by_one().to(memory_format=layout)
    plan = plan_of(model)
    apply_plan(model, plan)
    for name, parameter in model.named_parameters():
        fresh = torch.empty(parameter.shape)
        if parameter.ndim == 4:
            fresh = torch.empty(parameter.shape, memory_format=layout)
        assert parameter.stride() == fresh.stride(), name


def test_memory_format_in_three_dimensions():
    model = three_dimensional().to(memory_format=torch.channels_last_3d)
    apply_plan(model, plan_of(model, (torch.randn(2, 2, 6, 6, 6),)))
    assert model[3].in_channels < 6
    for module in (model[0], model[3]):
        expected = torch.empty(module.weight.shape, memory_format=torch.channels_last_3d)
        assert module.weight.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision(dtype):
    model = plain()
    plan = plan_of(model)
    model.to(dtype)
    integers = model[1].num_batches_tracked.dtype
    apply_plan(model, plan)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model[1].running_mean.dtype == dtype
    assert model[1].num_batches_tracked.dtype == integers


def test_device():
    model = plain()
    plan = plan_of(model)
    model[3].to("meta")
    model[4].to("meta")
    apply_plan(model, plan)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.device.type == ("meta" if name[0] in "34" else "cpu"), name
    assert model[3].weight.shape == (model[3].out_channels, model[0].out_channels, 3, 3)


def test_attributes_of_parameters():
    model = plain()
    for parameter in model.parameters():
        parameter.weight_decay = {"is": "mine"}
    marks = {name: p.weight_decay for name, p in model.named_parameters()}
    apply_plan(model, plan_of(model))
    for name, parameter in model.named_parameters():
        assert parameter.weight_decay is marks[name]
        assert isinstance(parameter, nn.Parameter)


def test_gradient_hooks_and_their_handles():
    model = plain()
    seen = []
    early = model[3].weight.register_hook(lambda grad: seen.append(("early", tuple(grad.shape))))
    late = model[3].weight.register_post_accumulate_grad_hook(
        lambda p: seen.append(("late", tuple(p.grad.shape)))
    )
    atomic_write = apply_plan(model, plan_of(model))
    shape = tuple(model[3].weight.shape)
    assert shape != (12, 8, 3, 3)
    assert "3.weight" in {r.name for r in atomic_write}
    model(*X).sum().backward()
    assert seen == [("early", shape), ("late", shape)]
    early.remove()
    late.remove()
    model(*X).sum().backward()
    assert len(seen) == 2


def test_hooks_of_modules_and_forward_patches_stay():
    model = plain()
    calls = []
    model[3].register_forward_hook(lambda *_: calls.append(1))
    plan = plan_of(model)
    calls.clear()
    apply_plan(model, plan)
    model(*X)
    assert calls == [1]


def test_buffers_stay_what_they_were():
    model = plain()
    model[1].register_buffer("mine", torch.arange(8.0), persistent=False)
    tracked = model[1].num_batches_tracked
    apply_plan(model, plan_of(model))
    assert set(dict(model[1].named_buffers())) == {
        "running_mean", "running_var", "num_batches_tracked", "mine"
    }  # fmt: skip
    assert model[1].num_batches_tracked is tracked
    assert "1.mine" not in model.state_dict()
    assert "1.running_mean" in model.state_dict()


@pytest.mark.parametrize("name", ["plain", "norms", "dense"])
def test_names_and_their_order(name):
    case = CUT[name]
    model = built(case)
    before = [list(model.state_dict()), list(dict(model.named_parameters())), list(model.modules())]
    apply_plan(model, random_plan(offered(model, inputs_of(case)).groups, seed=0))
    after = [list(model.state_dict()), list(dict(model.named_parameters())), list(model.modules())]
    # GroupNorm without weights has no shape that tells its groups.
    after[0] = [entry for entry in after[0] if not is_record(entry)]
    assert before == after


def in_groups():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 4, 1)
    )


@pytest.mark.parametrize("build", [plain, in_groups, STRUCTURES["split by an attribute"].build])
def test_cut_under_inference_mode_can_be_trained(build):
    torch.manual_seed(0)
    model = build()
    plan = plan_of(model)
    with torch.inference_mode():
        apply_plan(model, plan)
    assert not any(buffer.is_inference() for buffer in model.buffers())
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    model.train()(*X).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert not parameter.is_inference()
        if name.endswith("weight"):
            assert not torch.equal(parameter, before[name]), name
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            assert not torch.equal(buffer, before[name])


def test_parameters_stay_the_same_objects_without_a_gradient():
    model = plain()
    model(*X).sum().backward()
    old = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    for entry in apply_plan(model, plan_of(model)):
        parameter, value = old[entry.name]
        assert entry.parameter is parameter is model.get_parameter(entry.name)
        assert torch.equal(entry.old, value)
        assert parameter.is_leaf
        assert parameter.grad is None
        assert torch.equal(entry.slice(value), parameter)


@pytest.mark.parametrize("name", CUT)
def test_a_copy_to_be_cut_shares_what_the_cut_replaces(name):
    """And nothing else, so that the cut leaves the original as it was."""
    model = built(CUT[name])
    plan = random_plan(offered(model, inputs_of(CUT[name])).groups, seed=0)
    before = state(model)
    copied = eager_copy(model, parameters_to_slice(model, plan))
    shared = {
        name
        for (name, mine), other in zip(model.named_parameters(), copied.parameters(), strict=True)
        if mine.data_ptr() == other.data_ptr()
    }
    assert {entry.name for entry in apply_plan(copied, plan)} == shared
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.zero_()
    assert_same_state(state(model), before)


def test_a_trial_gives_back_data_and_gradients_to_the_bit():
    model = plain()
    model(*X).sum().backward()
    before = {n: (p, p.data, p.grad, p.detach().clone()) for n, p in model.named_parameters()}
    plan = plan_of(model)
    with reversible_cut(model, plan, keep=False):
        assert any(p.shape != before[n][1].shape for n, p in model.named_parameters())
    for name, parameter in model.named_parameters():
        same, data, gradient, value = before[name]
        assert parameter is same
        assert parameter.data_ptr() == data.data_ptr()
        assert parameter.grad is gradient
        assert torch.equal(parameter, value)


def test_gradients_arrive_after_a_cut_though_somebody_holds_the_old_accumulators():
    """As DistributedDataParallel does: an accumulator expects the shape of its first day."""
    model = plain()
    model(*X).sum().backward()
    held = [p.view_as(p).grad_fn.next_functions[0][0] for p in model.parameters()]
    apply_plan(model, plan_of(model))
    model(*X).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert held


def test_sizes_are_what_layers_say():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.GroupNorm(4, 4), nn.Conv2d(4, 2, 1)
    )
    cuts = [SideCut(layer, "out", 4, (0, 3)) for layer in "012"]
    apply_plan(model, PruningPlan((*cuts, SideCut("3", "in", 4, (0, 3)))))
    assert (model[1].in_channels, model[1].out_channels, model[1].groups) == (2, 2, 2)
    assert (model[2].num_groups, model[2].num_channels) == (2, 2)
    assert "Conv2d(2, 2, kernel_size=(1, 1)" in repr(model[3])


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
