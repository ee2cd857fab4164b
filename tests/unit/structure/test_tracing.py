import copy

import lightning.pytorch as pl
import pytest
import torch
from helpers.networks import CUT, BasicBlock, Wired, plain, residual, squeeze_excitation
from helpers.oracle import assert_cut_is_masked, offered, portrait, random_plan
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18, resnet50

from acsp_lightning import UnsupportedStructureError
from acsp_lightning.structure.groups import STREAMS
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.zoo import mobilenet_v2, resnet20, resnet56

X = (torch.randn(2, 3, 8, 8),)


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


def test_a_layer_that_gives_no_tensor_is_named():
    class Odd(nn.Linear):
        def forward(self, x):
            return {"y": super().forward(x)}

    model = Wired(
        lambda net, x: net.b(net.odd(net.a(x))["y"]),
        a=nn.Linear(3, 5),
        odd=Odd(5, 6),
        b=nn.Linear(6, 2),
    )
    tracing = offered(model, (torch.randn(2, 3),))
    assert tracing.groups == ()
    assert "gives a dict" in tracing.left_whole["odd"]
    assert "'odd' does not give the same" in tracing.left_whole["a"]


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


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.Sequential(nn.BatchNorm2d(3))])
def test_nothing_to_prune(model):
    with pytest.raises(UnsupportedStructureError, match="no convolution or linear layer"):
        trace_groups(model, X)


def test_lazy_layers_are_named_and_stay_lazy():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(6, 3), nn.Conv2d(6, 2, 1))
    with pytest.raises(UnsupportedStructureError, match="'1' is a lazy layer"):
        trace_groups(model, X)
    assert type(model[1]) is nn.LazyConv2d
    model(*X)
    assert [g.name for g in offered(model, X).groups] == ["0", "1"]


def names(model, **options):
    return [group.name for group in offered(model, X, **options).groups]


def test_order_is_that_of_execution_not_of_definition():
    layers = {"z": nn.Conv2d(3, 6, 3), "y": nn.Conv2d(6, 8, 1), "x": nn.Linear(8, 4)}
    model = Wired(
        lambda net, v: net.x(net.y(net.z(v)).mean((2, 3))),
        **dict(sorted(layers.items())),
    )
    assert list(dict(model.named_children())) == ["x", "y", "z"]
    assert names(model) == ["z", "y"]


def test_streams_are_offered_on_request():
    assert names(residual(), residual=False) == ["1.conv1", "2.conv1"]
    stream = {g.name: g for g in offered(residual(), X, residual=True).groups}
    assert [side.layer for side in stream["0"].producers] == ["0", "1.conv2"]
    assert [side.layer for side in stream["2.conv2"].producers] == ["2.conv2", "2.shortcut.0"]
    assert [side.layer for side in stream["0"].consumers] == ["1.conv1", "2.conv1", "2.shortcut.0"]
    assert [g.residual for g in stream.values()] == [True, False, False, True]


class Stages(nn.Sequential):
    """A stem, blocks of two layers in two stages, and a classifier."""

    def __init__(self, blocks, stride):
        block = [BasicBlock(6, 6) for _ in range(blocks)]
        later = [BasicBlock(6, 6, stride=stride), *(BasicBlock(6, 6) for _ in range(blocks))]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
        super().__init__(nn.Conv2d(3, 6, 3, padding=1), *block, *later, *head)


# Blocks of two layers lose half of each. Stem and shortcut lose nothing.
@pytest.mark.parametrize(
    ("blocks", "stride", "inside"),
    [(2, 1, 10 / 11), (4, 2, 18 / 20), (3, 2, 14 / 16), (2, 2, 10 / 12), (1, 1, 6 / 7)],
)
def test_streams_are_offered_where_half_of_the_insides_takes_too_little(blocks, stride, inside):
    chosen = inside / 2 < 0.45
    found = offered(Stages(blocks, stride), X)
    assert any(group.residual for group in found.groups) is chosen
    assert (found.sums == STREAMS) is chosen
    assert offered(Stages(blocks, stride), X, residual=True).sums is None
    assert not any(g.residual for g in offered(Stages(blocks, stride), X, residual=False).groups)


def test_which_known_networks_have_streams_to_offer():
    images = (torch.randn(1, 3, 32, 32),)
    found = {
        build.__name__: any(group.residual for group in trace_groups(build(), images).groups)
        for build in (resnet56, resnet20, resnet18, resnet50, mobilenet_v2)
    }
    assert [name for name, streams in found.items() if streams] == ["resnet18"]


def test_gates_belong_to_what_they_gate():
    groups = {g.name: g for g in offered(squeeze_excitation(), X).groups}
    assert [side.layer for side in groups["conv"].producers] == ["conv", "fc2"]
    assert not groups["conv"].residual


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["3"]}, ["3"]),
        ({"include": ["[03]", "7"]}, ["0", "3", "7"]),
        ({"exclude": ["3"]}, ["0", "7"]),
        ({"include": ["*"], "exclude": ["*"]}, []),
    ],
)
def test_patterns_choose_layers(options, expected):
    assert names(plain(), **options) == expected


def test_a_stream_goes_by_any_of_its_layers():
    assert names(residual(), residual=True, include=["1.conv2"]) == ["0"]
    assert "0" not in names(residual(), residual=True, exclude=["1.conv2"])


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_unknown_patterns_suggest_the_nearest_name(argument):
    with pytest.raises(ValueError, match=rf"{argument} has '1\.covn1'.*nearest is '1\.conv1'"):
        trace_groups(residual(), X, **{argument: ["1.covn1"]})


def test_patterns_name_layers_that_make_channels():
    with pytest.raises(ValueError, match="'1', which matches no"):
        trace_groups(plain(), X, include=["1"])  # a BatchNorm


def test_a_single_channel_is_not_offered():
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1))
    assert names(model) == ["1"]


def test_concatenated_flattened_maps_are_left_whole():
    def forward(net, x):
        x = net.a(x)
        flat = functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return net.out(torch.cat([flat, net.b(x).mean((2, 3))], 1))

    model = Wired(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 8, 3), out=nn.Linear(6 * 4 + 8, 4))
    tracing = offered(model, X)
    assert tracing.groups == ()
    assert "a" in tracing.left_whole


def test_a_forward_that_needs_gradients_is_named():
    def forward(net, x):
        x = x.requires_grad_()
        return net.b(net.a(x) + torch.autograd.grad(net.a(x).sum(), x)[0].sum())

    model = Wired(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 4, 3))
    model.forward = torch.enable_grad()(model.forward)
    with pytest.raises(UnsupportedStructureError, match="could not follow Wired"):
        trace_groups(model, X)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_forward_runs_once():
    model, calls = plain(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert trace_groups(model, X).groups
    assert len(calls) == 1


def test_a_layer_that_is_called_again_is_left_whole_with_what_it_reads():
    model = Wired(
        lambda net, x: net.c(net.b(net.b(net.a(x)))) + net.c2(net.d(x)),
        a=nn.Conv2d(3, 6, 1),
        b=nn.Conv2d(6, 6, 1),
        c=nn.Conv2d(6, 4, 1),
        c2=nn.Conv2d(6, 4, 1),
        d=nn.Conv2d(3, 6, 1),
    )
    tracing = trace_groups(model, X)
    assert [group.name for group in tracing.groups] == ["d"]
    assert set(tracing.left_whole) == {"a", "b"}
    assert all("forward calls 'b' 2 times" in why for why in tracing.left_whole.values())


def in_chunks(x):
    return x.chunk(2, 1)


def in_a_view(x):
    return x.view(len(x), 2, x.shape[1] // 2, *x.shape[2:]).unbind(1)


def in_slices(x):
    half = x.shape[1] // 2
    return x[:, :half], x[:, half:]


class Batched(pl.LightningModule):
    """Has numbers that equal counts of channels and say something else; its forward reads none."""

    def __init__(self, divide) -> None:
        super().__init__()
        self.batch_size, self.image_size, self.workers, self.betas = 8, (8, 8), 4, [4, 8]
        self.divide, self.act = divide, functional.relu
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        first, second = self.divide(self.act(self.a(x.to(self.device))))
        return self.head(self.b(first * second).mean((2, 3)))

    def train_dataloader(self):
        return self.batch_size, self.image_size, self.workers

    def configure_optimizers(self):
        return self.betas


@pytest.mark.parametrize("divide", [in_chunks, in_a_view, in_slices])
def test_numbers_that_forward_does_not_read_stay(divide):
    model = Batched(divide).eval()
    plan = random_plan(offered(model, X).groups, seed=0)
    assert plan.kept("a", "out") is not None
    cut = assert_cut_is_masked(model, plan, X, tolerance=1e-5)
    assert cut.train_dataloader() == (8, (8, 8), 4)
    assert cut.configure_optimizers() == [4, 8]
    assert not any("acsp" in name for name in cut.state_dict())


class FineTuned(nn.Module):
    """As transfer learning is written: most of a pretrained network, and a head of its own."""

    def __init__(self):
        super().__init__()
        self.model = resnet18()
        self.encoder = nn.Sequential(*list(self.model.children())[:-1])
        self.head = nn.Linear(512, 10)

    def forward(self, x):
        return self.head(self.encoder(x).flatten(1))


def test_a_network_under_two_names_is_cut():
    torch.manual_seed(0)
    model, inputs = FineTuned().eval(), (torch.randn(2, 3, 32, 32),)
    alone = [f"model.{group.name}" for group in trace_groups(resnet18(), inputs).groups]
    tracing = offered(model, inputs)
    assert [group.name for group in tracing.groups] == alone
    assert tracing.left_whole == {}
    assert_cut_is_masked(model, random_plan(tracing.groups, seed=0), inputs, tolerance=1e-4)


@pytest.mark.parametrize("names", ["model.layer1.*.conv1", "encoder.4.*.conv1"])
def test_layers_are_asked_for_under_any_of_their_names(names):
    inputs = (torch.randn(2, 3, 32, 32),)
    found = trace_groups(FineTuned(), inputs, include=[names], residual=False)
    assert [group.name for group in found.groups] == ["model.layer1.0.conv1", "model.layer1.1.conv1"]
    rest = trace_groups(FineTuned(), inputs, exclude=[names], residual=False)
    assert not {group.name for group in rest.groups} & {group.name for group in found.groups}
