import copy
from dataclasses import replace

import pytest
import torch
from helpers.networks import CUT, WHOLE, Wired, residual, sliced
from helpers.oracle import assert_cut_is_masked, built, inputs_of, offered, portrait, random_plan
from torch import nn
from torch.nn import functional

from acsp_lightning import UnsupportedStructureError
from acsp_lightning.structure.groups import Tracing
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.tracing import trace_groups
from acsp_lightning.structure.verification import prunable_groups, unseen_layers, verify_groups


def altered(group, side, **changes):
    """``group`` with the consumer or passenger ``side`` replaced."""

    def swap(sides):
        return tuple(replace(s, **changes) if s == side else s for s in sides)

    return replace(group, passthrough=swap(group.passthrough), consumers=swap(group.consumers))


def shifted(group):
    side = group.consumers[0]
    return altered(group, side, channels=(*side.channels[1:], side.channels[0]))


def swapped(group):
    side = group.consumers[0]
    return altered(group, side, channels=(side.channels[1], side.channels[0], *side.channels[2:]))


def reversed_last(group):
    side = group.consumers[0]
    return altered(group, side, channels=(*side.channels[:-2], side.channels[-1], side.channels[-2]))


def forgotten_norm(group):
    return replace(group, passthrough=())


def shifted_norm(group):
    side = group.passthrough[0]
    return altered(group, side, channels=(*side.channels[1:], side.channels[0]))


def forgotten_consumer(group):
    return replace(group, consumers=())


def too_wide(group):
    side = group.consumers[0]
    return altered(group, side, positions=tuple(p + 1 for p in side.positions))


WRONG = [
    shifted, swapped, reversed_last, forgotten_norm, shifted_norm, forgotten_consumer, too_wide
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_index_maps_are_rejected(wrong):
    case = CUT["plain"]
    model, inputs = built(case), inputs_of(case)
    first, second, third = trace_groups(model, inputs).groups
    assert wrong(second) != second
    found = verify_groups(model, inputs, Tracing((first, wrong(second), third), {"x": "before"}))
    assert found.groups == (first, third)
    assert set(found.left_whole) == {"3", "x"}
    assert model[3].out_channels == 12


@pytest.mark.parametrize("wrong", [shifted, swapped])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_index_maps_are_rejected_in_low_precision(wrong, dtype):
    case = CUT["plain"]
    model, inputs = built(case).to(dtype), tuple(x.to(dtype) for x in inputs_of(case))
    first, second, third = trace_groups(model, inputs).groups
    found = verify_groups(model, inputs, Tracing((first, wrong(second), third), {}))
    assert found.groups == (first, third)


@pytest.mark.parametrize("name", CUT)
def test_good_groups_pass_unchanged(name):
    case = CUT[name]
    model, inputs = built(case), inputs_of(case)
    tracing = trace_groups(model, inputs, residual=case.residual)
    assert verify_groups(model, inputs, tracing) == tracing


@pytest.mark.parametrize("name", ["local_response", "softmax", "mean", "roll"])
def test_weak_mixing_is_found_in_single_precision(name):
    case = WHOLE[name]
    model, inputs = built(case).float(), tuple(x.float() for x in inputs_of(case))
    assert "a" in offered(model, inputs).left_whole


SLICES = [
    slice(start, stop, step)
    for start in range(8)
    for stop in (2, 5, 8)
    for step in (1, 2, 3)
    if start < stop and (start, stop, step) != (0, 8, 1)
]


@pytest.mark.parametrize("where", SLICES, ids=str)
def test_no_slice_of_channels_slips_through(where):
    """What numbers in the code count stays; what lies outside of them may go."""
    model = sliced(where).double()
    inputs = inputs_of(CUT["plain"])
    tracing = offered(model, inputs, residual=True)
    cut = [group.width for group in tracing.groups if group.name == "a"]
    assert ("a" in tracing.left_whole) or cut[0] < 8
    for seed in range(3):
        assert_cut_is_masked(model, random_plan(tracing.groups, seed), inputs)


@pytest.mark.parametrize(
    ("width", "pieces"), [(2, 2), (4, 2), (6, 2), (8, 2), (24, 2), (3, 3), (6, 3), (12, 3), (24, 3)]
)
def test_no_chunk_of_channels_slips_through(width, pieces):
    def forward(net, x):
        return net.b(sum(part * (i + 1) for i, part in enumerate(net.a(x).chunk(pieces, 1))))

    model = Wired(forward, a=nn.Conv2d(3, width, 3), b=nn.Conv2d(width // pieces, 4, 1)).double()
    inputs = inputs_of(CUT["plain"])
    groups = offered(model, inputs, residual=True).groups
    assert [group.width for group in groups] == [width // pieces] * (width > pieces)
    for seed in range(3):
        assert_cut_is_masked(model, random_plan(groups, seed), inputs)


def test_two_groups_wrong_are_both_named():
    case = CUT["plain"]
    model, inputs = built(case), inputs_of(case)
    groups = trace_groups(model, inputs).groups
    found = verify_groups(
        model, inputs, Tracing((shifted(groups[0]), groups[1], shifted(groups[2])), {})
    )
    assert found.groups == (groups[1],)
    assert set(found.left_whole) == {"0", "7"}


class Standardised(nn.Conv2d):
    """Reads all input channels at once."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Viewed(nn.Module):
    """Counts on the number of channels."""

    def forward(self, x):
        return x.view(len(x), 8, *x.shape[2:])


class Counted(nn.Module):
    """Computes with the number of channels."""

    def forward(self, x):
        return x * x.shape[1]


def deep(wrong: dict[int, str]) -> nn.Sequential:
    """21 convolutions of 8 channels; before those at ``wrong`` places channels are counted."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1)]
    for place in range(20):
        kinds = {"viewed": [Viewed()], "counted": [Counted()]}
        layers += [*kinds.get(wrong.get(place), []), nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(8, 2, 1))


@pytest.mark.parametrize(
    ("wrong", "passes"),
    [
        ({}, 5),
        ({7: "viewed"}, 20),
        ({7: "counted"}, 20),
        ({0: "counted", 10: "viewed", 11: "viewed", 19: "counted"}, 20),
        ({place: "counted" for place in range(20)}, 20),
        ({place: "viewed" for place in range(20)}, 20),
        ({place: "viewed" if place % 2 else "counted" for place in range(0, 20, 3)}, 20),
    ],
)
def test_cost_in_layers_and_the_same_answer_as_of_every_group_alone(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[int, str], passes: int
) -> None:
    model, inputs = deep(wrong), (torch.randn(2, 3, 6, 6),)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    tracing = trace_groups(model, inputs)
    alone = [verify_groups(model, inputs, replace(tracing, groups=(g,))) for g in tracing.groups]
    calls: list[nn.Module] = []
    run = nn.Conv2d._conv_forward

    def counting(module, *arguments):
        calls.append(module)
        return run(module, *arguments)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", counting)
    found = verify_groups(model, inputs, tracing)
    assert len(calls) <= passes * len(convs)
    assert found.groups == tuple(group for one in alone for group in one.groups)
    assert found.left_whole == {name: why for one in alone for name, why in one.left_whole.items()}
    assert len(found.left_whole) == len(wrong)


def test_a_network_that_takes_no_single_sample_is_tried_with_all() -> None:
    def forward(net, x):
        if len(x) != 2:
            raise ValueError("pairs")
        return net.b(net.a(x))

    model = Wired(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 4, 1))
    assert [group.name for group in offered(model, X).groups] == ["a"]


def test_layers_that_forward_never_calls_are_known() -> None:
    class Headed(nn.Module):
        """``aux`` runs in train mode alone, ``other`` only where a training step would call it."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
            self.aux, self.other = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            x = self.body(x).relu()
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    model = Headed()
    assert unseen_layers(model, (torch.randn(2, 3),)) == ("other",)
    assert model.training


X = (torch.randn(2, 3, 8, 8),)


@pytest.mark.parametrize("grad", [False, True])
def test_a_buffer_that_only_training_uses_is_seen(grad: bool) -> None:
    """Its own statistics of the channels, kept in every training pass or in those with gradients."""

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x):
            x = self.a(x).relu()
            if self.training and (torch.is_grad_enabled() or not grad):
                self.mean = self.mean + x.detach().mean(0)
            return self.b(x)

    tracing = trace_groups(Watched(), (torch.randn(2, 3),))
    assert [group.name for group in tracing.groups] == ["a"]
    verified = verify_groups(Watched(), (torch.randn(2, 3),), tracing)
    assert not verified.groups
    assert "forward fails after a cut" in verified.left_whole["a"]


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


def test_custom_layer_kinds_are_checked_by_value():
    """A convolution that standardises its filters reads all input channels at once."""
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


class Reparametrised(nn.Module):
    """Every layer writes into a sum, as in RepVGG."""

    def __init__(self):
        super().__init__()
        self.wide, self.thin = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.next, self.beside = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = (self.wide(x) + self.thin(x)).relu()
        return self.head((self.next(x) + self.beside(x)).relu().mean((2, 3)))


def test_streams_are_cut_where_there_is_nothing_else():
    tracing = prunable_groups(Reparametrised(), X)
    assert [group.name for group in tracing.groups] == ["wide", "next"]
    with pytest.raises(UnsupportedStructureError, match="residual=False"):
        prunable_groups(Reparametrised(), X, residual=False)


class Numbered(nn.Module):
    """Channels in two parts, and numbers that equal their counts; ``body`` says which it reads."""

    def __init__(self, body):
        super().__init__()
        self.width, self.half, self.size, self.sizes = 8, 4, 8, [8, 8]
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)
        self.body = body

    def forward(self, x):
        return self.c(self.b(self.body(self, self.a(x))).relu())


def in_halves(x):
    first, second = x.chunk(2, 1)
    return first * second


def resized(net, x):
    return functional.interpolate(in_halves(x), net.sizes)


def large_enough(net, x):
    return in_halves(x) if x.shape[-1] >= net.size else in_halves(x).relu()


def resized_and_counted(net, x):
    x = functional.interpolate(x, net.size)
    return x[:, : net.width // 2] * x[:, net.half :]


def large_in_training(net, x):
    return in_halves(x) if net.training and x.shape[-1] == net.size else 2 * in_halves(x)


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (resized, set()),
        (large_enough, set()),
        (large_in_training, set()),
        (resized_and_counted, {"width", "half"}),
        (lambda net, x: x[:, : net.half] * x[:, net.half :], {"half"}),
    ],
)
def test_numbers_that_forward_reads_for_something_else_stay(body, changed):
    torch.manual_seed(0)
    model, inputs = Numbered(body).double().eval(), (X[0].double(),)
    before = dict(vars(model))
    (first, _) = offered(model, inputs).groups
    assert first.name == "a"
    cut = assert_cut_is_masked(model, random_plan([first], seed=1), inputs)
    numbers = ("width", "half", "size", "sizes")
    assert {name for name in numbers if vars(cut)[name] != before[name]} == changed


def test_numbers_stay_in_a_network_whose_training_takes_no_example():
    class Pairs(Numbered):
        def forward(self, x):
            if self.training:
                raise ValueError("pairs are wanted")
            return super().forward(x)

    model = Pairs(lambda net, x: x[:, : net.half] * x[:, net.half :]).double().eval()
    (first, _) = offered(model, (X[0].double(),)).groups
    assert [side.side for side in first.passthrough] == ["=half"]
