import copy

import pytest
import torch
from networks import CUT, Wired, plain, residual
from oracle import assert_cut_is_masked, inputs_of, offered
from torch import nn
from torch.nn import functional

from acsp_lightning import UnsupportedStructureError
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups

X = (torch.randn(2, 3, 8, 8),)


def portrait(model):
    """Everything about a model that inspection could disturb."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (name, id(m), type(m), m.training, [list(getattr(m, hook)) for hook in hooks])
        for name, m in model.named_modules()
    ]
    sizes = [{k: v for k, v in vars(m).items() if type(v) is int} for m in model.modules()]
    tensors = [
        (name, id(t), t.requires_grad, t._version if isinstance(t, nn.Parameter) else None, id(t.grad))
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    ]
    return modules, sizes, tensors


def disturbed(model):
    """Mixed flags, frozen parts, gradients, hooks."""
    model.train()
    model[1].eval()
    model[1].requires_grad_(False)
    model[3].weight.requires_grad_(False)
    model(*X).sum().backward()
    model[0].register_forward_hook(lambda *_: None)
    return model


def test_model_is_left_as_it_was():
    model = disturbed(plain())
    values = copy.deepcopy(model.state_dict())
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    before, inputs = portrait(model), X[0].clone()
    random_state = torch.random.get_rng_state()
    tracing = offered(model, X)
    assert tracing.groups
    assert portrait(model) == before
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.equal(X[0], inputs)
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name
    for name, value in gradients.items():
        assert torch.equal(model.get_parameter(name).grad, value)


class HeadWhileTraining(nn.Module):
    """Statistics, counters and dropout that move in train mode only; one of them is reassigned."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.b, self.head = nn.Conv2d(6, 5, 3), nn.Linear(5, 4)
        self.aux = nn.Linear(6, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        x = functional.dropout(self.norm(self.a(x)), training=self.training)
        out = self.head(self.b(x).mean((2, 3)))
        if self.training:
            self.seen = self.seen + 1
            return out, self.aux(x.mean((2, 3)))
        return out


@pytest.mark.parametrize("batch", [1, 2])
def test_trial_in_train_mode_leaves_no_trace(batch):
    model = HeadWhileTraining()
    before, values = portrait(model), copy.deepcopy(model.state_dict())
    random_state = torch.random.get_rng_state()
    tracing = offered(model, (torch.randn(batch, 3, 8, 8, generator=torch.Generator()),))
    assert [group.name for group in tracing.groups] == ["b"]
    assert "train" in tracing.left_whole["a"] or "fails" in tracing.left_whole["a"]
    assert portrait(model) == before
    assert torch.equal(torch.random.get_rng_state(), random_state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name


def test_tracer_that_fails_leaves_no_hooks():
    class Odd(nn.Linear):
        def forward(self, x):
            return {"y": super().forward(x)}

    model = Wired(
        lambda net, x: net.b(net.odd(net.a(x))["y"]),
        a=nn.Linear(3, 5),
        odd=Odd(5, 6),
        b=nn.Linear(6, 2),
    )
    before = portrait(model)
    with pytest.raises(UnsupportedStructureError, match="tracer could not follow Wired"):
        trace_groups(model, (torch.randn(2, 3),))
    assert portrait(model) == before


def expected_groups(model, inputs=X):
    tracing = offered(model, inputs)
    assert [g.name for g in tracing.groups] == ["0", "3", "7"]
    assert tracing.left_whole == {}


def test_frozen_networks_are_traced():
    expected_groups(plain().requires_grad_(False))
    model = plain()
    model[3].requires_grad_(False)
    model[4].requires_grad_(False)
    expected_groups(model)


def test_traced_without_grad():
    with torch.no_grad():
        expected_groups(plain())
        assert not torch.is_grad_enabled()


def test_traced_inside_inference_mode_with_a_batch_made_there():
    model = plain()
    with torch.inference_mode():
        batch = torch.randn(2, 3, 8, 8)
        assert batch.is_inference()
        expected_groups(model, (batch,))
        assert torch.is_inference_mode_enabled()


def test_traced_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected_groups(plain())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    expected_groups(plain().to(dtype), (X[0].to(dtype),))


@pytest.mark.parametrize("constant", [torch.zeros, torch.ones])
def test_constant_example_inputs_still_tell_positions_apart(constant):
    case = CUT["flatten"]
    assert len(offered(case.build(), (constant(2, 3, 8, 8),)).groups) == 3
    last = Wired(
        lambda net, x: net.b(net.a(x).permute(0, 2, 3, 1).flatten(1)),
        a=nn.Conv2d(3, 6, 3, padding=1),
        b=nn.Linear(6 * 64, 2),
    )
    assert "a" in offered(last, (constant(2, 3, 8, 8),)).left_whole


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y},
        lambda y: (y, None),
        lambda y: [{"a": (y,)}, 3],
        lambda y: (y, y.argmax(1)),
        lambda y: y.masked_fill(torch.tensor([True, False, False, True]), -torch.inf),
    ],
)
def test_nested_outputs(wrap):
    inner = plain()
    model = Wired(lambda net, x: wrap(net.inner(x)), inner=inner)
    tracing = offered(model, X)
    assert [g.name for g in tracing.groups] == ["inner.0", "inner.3", "inner.7"]


def test_several_inputs_and_other_arguments():
    def forward(net, pair, scale, flag):
        return net.b(net.a(pair["image"]) * scale).mean((2, 3)) if flag else None

    model = Wired(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 4, 3))
    tracing = offered(model, ({"image": X[0]}, 2.0, True))
    assert [g.name for g in tracing.groups] == ["a"]


def test_layers_called_with_keywords():
    model = Wired(
        lambda net, x: net.b(input=net.a(input=x)).mean((2, 3)),
        a=nn.Conv2d(3, 6, 3),
        b=nn.Conv2d(6, 4, 3),
    )
    assert [g.name for g in offered(model, X).groups] == ["a"]


def test_forward_may_write_to_its_input_and_draw_noise():
    def forward(net, x):
        x -= x.mean()
        x = net.a(x)
        x = x + 0.1 * torch.randn(len(x), 1, 1, 1)
        return net.b(x).mean((2, 3))

    model = Wired(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 4, 3))
    before = X[0].clone()
    assert [g.name for g in offered(model, X).groups] == ["a"]
    assert torch.equal(X[0], before)


def test_forward_that_fails_is_told_with_its_inputs():
    with pytest.raises(UnsupportedStructureError, match=r"forward failed .*tensor \(2, 5\)"):
        trace_groups(plain(), (torch.randn(2, 5),))


def test_module_without_forward():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

    with pytest.raises(UnsupportedStructureError, match=r"Silent\.forward failed.*implement it"):
        trace_groups(Silent(), X)


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.Sequential(nn.BatchNorm2d(3))])
def test_nothing_to_prune(model):
    with pytest.raises(UnsupportedStructureError, match="no convolution or linear layer"):
        trace_groups(model, X)


def test_outputs_without_tensors_are_refused():
    class Result:
        def __init__(self, y):
            self.y = y

    model = Wired(lambda net, x: Result(net.inner(x)), inner=plain())
    with pytest.raises(UnsupportedStructureError, match="outputs"):
        trace_groups(model, X)


def test_lazy_layers_are_named_and_stay_lazy():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(6, 3), nn.Conv2d(6, 2, 1))
    with pytest.raises(UnsupportedStructureError, match="'1' is a lazy layer"):
        trace_groups(model, X)
    assert type(model[1]) is nn.LazyConv2d
    model(*X)
    assert [g.name for g in offered(model, X).groups] == ["0", "1"]


def test_custom_layer_kinds_are_checked_by_value():
    """A convolution that standardises its filters reads all input channels at once."""

    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    model = nn.Sequential(nn.Conv2d(3, 6, 3), Standardised(6, 8, 3), nn.Conv2d(8, 2, 1))
    tracing = offered(model.double(), (X[0].double(),))
    assert [g.name for g in tracing.groups] == ["1"]
    assert set(tracing.left_whole) == {"0"}


def test_of_groups_that_fail_only_together_the_first_is_cut():
    def forward(net, x):
        parts = torch.cat([net.a(x), net.b(x)], 1)
        if parts.shape[1] < 15:
            raise RuntimeError("too few")
        return net.out(net.c(parts))

    model = Wired(
        forward,
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(3, 8, 1),
        c=nn.Conv2d(16, 6, 1),
        out=nn.Conv2d(6, 4, 1),
    ).double()
    inputs = (X[0].double(),)
    tracing = offered(model, inputs)
    assert [g.name for g in tracing.groups] == ["a", "c"]
    assert "together with the groups before it" in tracing.left_whole["b"]
    plan = build_plan(tracing.groups, {"a": range(1, 8), "c": [2, 4]})
    assert_cut_is_masked(model, plan, inputs)


def test_user_hooks_see_no_cut_afterwards():
    model = residual()
    widths = []
    model[1].conv1.register_forward_hook(lambda _m, _i, output: widths.append(output.shape[1]))
    offered(model, inputs_of_float())
    widths.clear()
    model(*X)
    assert widths == [6]


def inputs_of_float():
    return tuple(x.float() for x in inputs_of(CUT["residual"]))
