"""Consumers that learn again what they gave, against least squares on what hooks of the test see."""

import copy
import itertools
import operator
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from helpers.networks import CUT, Wired, randomized
from helpers.oracle import built, inputs_of, offered, random_plan
from torch import nn
from torch.nn import functional

from acsp_lightning.functional.least_squares import REFIT_RIDGE
from acsp_lightning.structure.fitted import correctable_layers
from acsp_lightning.structure.plan import PruningPlan, SideCut, build_plan
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.refit import prepare_refit
from acsp_lightning.structure.thinning import thinned
from acsp_lightning.structure.tracing import trace_groups


@pytest.fixture(autouse=True)
def every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracles see what the fit sees."""
    monkeypatch.setattr("acsp_lightning.structure.refit.POSITIONS", 64)


# Maps of at most 64 positions: every one of them is compared, none is left to chance.
X = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FRESH = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def nothing(x):
    return x


class Join(nn.Module):
    """A sum that hooks can look into."""

    def __init__(self, add=operator.add):
        super().__init__()
        self.add = add

    def forward(self, own, other):
        return self.add(own, other)


class Block(nn.Module):
    """conv1 (cut) -> conv2 (fitted) -> sum with a shortcut, in many ways."""

    def __init__(
        self,
        inputs=8,
        width=8,
        *,
        add=operator.add,
        norm=nn.BatchNorm2d,
        inner=nothing,
        last=functional.relu,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, width, 3, padding=1, bias=norm is nn.Identity)
        self.bn2 = norm(width)
        self.down = nn.Identity()
        if inputs != width:
            self.down = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.inner, self.last = inner, last
        self.join = Join(add)

    def forward(self, x):
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        # The shortcut comes after the branch, as in torchvision.
        return self.last(self.join(self.inner(out), self.down(x)))


class Straight(Block):
    """Without a shortcut and linear at its end, as where MobileNetV2 changes its width."""

    def forward(self, x):
        return self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))


class PreActivation(nn.Module):
    def __init__(self, add=operator.add):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.join = Join(add)

    def forward(self, x):
        out = self.conv1(functional.relu(self.bn1(x)))
        return self.join(self.conv2(functional.relu(self.bn2(out))), x)


def network(*blocks):
    width = next(m for m in reversed([*blocks[-1].modules()]) if isinstance(m, nn.BatchNorm2d))
    width = blocks[-1].conv2.out_channels if hasattr(blocks[-1], "conv2") else width.num_features
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    )


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 9, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(9, 10, (1, 3), bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 7),
        nn.ReLU(),
        nn.Linear(7, 4),
    )


def settled(model, data=X, seed=0):
    """Random weights, and the statistics that the data have under them, as after training."""
    model = randomized(model, seed)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(data)
    return model.eval()


def consumers(groups):
    return list(dict.fromkeys(side.layer for group in groups for side in group.consumers))


def watched(model, names, data):
    """Arguments and output of every call of some modules, as they were at that moment."""
    seen = {}

    def note(name):
        def hook(_module, arguments, output=None):
            copies = [value.detach().clone() for value in arguments]
            seen.setdefault(name, []).append((copies, None if output is None else output.clone()))

        return hook

    handles = []
    for name in names:
        module = model.get_submodule(name)
        register = module.register_forward_pre_hook if "join" in name else module.register_forward_hook
        handles.append(register(note(name)))
    with torch.no_grad():
        model(data)
    for handle in handles:
        handle.remove()
    return {name: calls[0] for name, calls in seen.items()}


def moments_of(model, groups, data):
    spreads = {}
    for group in groups:
        for side in group.consumers:
            runs = 1 + sum(a != b for a, b in zip(side.channels, side.channels[1:], strict=False))
            spreads[side.layer] = len(side.positions) // runs
    found = {}
    for layer, ((inputs,), _) in watched(model, spreads, data).items():
        dim = -1 if isinstance(model.get_submodule(layer), nn.Linear) else 1
        channels = inputs.movedim(dim, 0)
        rows = channels.reshape(len(channels) // spreads[layer], -1)
        found[layer] = rows @ rows.T / rows.shape[1]
    return found


def pruned(model, plan, groups, data=X, *, refit=True, fold=True, sums=True, size=None, later=False):
    """A copy that is cut; ``sums=False`` forgets what was added to the outputs.

    ``size``: of the batches that the samples come in; None: one for all. ``later``: layers that lose
    nothing are fitted as well.
    """
    targets = None
    if refit:
        with pytest.MonkeyPatch.context() as patch:
            if not sums:
                patch.setattr("acsp_lightning.structure.branches.ADDITIONS", set())
            batches = [(part,) for part in data.split(size or len(data))]
            free = correctable_layers(model) if later else ()
            targets = prepare_refit(model, consumers(groups), batches, later=free)
    cut = copy.deepcopy(model)
    moments = moments_of(model, groups, data) if fold else None
    prune(cut, plan, (data[:2],), groups=groups, input_moments=moments, refit=targets)
    return cut


def halves(groups):
    """Of every group every second channel."""
    return build_plan(groups, {group.name: range(0, group.width, 2) for group in groups})


def cut_in_half(build, *, residual=False, **options):
    torch.manual_seed(0)
    model = settled(build())
    groups = offered(model, (X[:4],), residual=residual).groups
    plan = halves(groups)
    return model, plan, groups, pruned(model, plan, groups, **options)


def unfolded(layer, inputs):
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    rows = functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return rows.transpose(1, 2).flatten(0, 1)


def as_rows(layer, output):
    return (output if isinstance(layer, nn.Linear) else output.movedim(1, -1)).flatten(0, -2)


def ridge(x, y, weight, bias):
    """argmin mean |Wx + b - y|^2 + ridge on W - weight, by stacking the ridge below the samples."""
    x, y, weight = (tensor.detach().numpy() for tensor in (x, y, weight))
    means = (x.mean(0), y.mean(0)) if bias is not None else (0.0, 0.0)
    x, y = x - means[0], y - means[1]
    size = np.sqrt((x**2).mean(0))
    size[size == 0] = 1.0  # a dead input keeps its weight
    pull = np.sqrt(REFIT_RIDGE * len(x)) * np.diag(size)
    best = np.linalg.lstsq(np.vstack([x, pull]), np.vstack([y, pull @ weight.T]), rcond=None)[0].T
    return torch.from_numpy(best), None if bias is None else torch.from_numpy(means[1] - best @ means[0])


def assert_fitted(model, plan, groups, cut, joins, *, later=False):
    """Every cut consumer is the best one there is on what the finished network gives it.

    Args:
        joins: by layer, the sum whose error it makes up for as well, and the norm before that.
        later: so are all layers that run after the first of them.
    """
    folded = pruned(model, plan, groups, refit=False)
    layers = [side.layer for side in plan if side.side == "in"]
    if later:
        order = [*watched(model, correctable_layers(model), X)]
        first = min(order.index(layer) for layer in layers)
        layers = order[first:]
    names = dict.fromkeys([*layers, *(join for join, _ in joins.values())])
    before, after = watched(model, names, X), watched(cut, names, X)
    for name in layers:
        layer, start = cut.get_submodule(name), folded.get_submodule(name)
        kept = plan.kept(name, "out")
        kept = slice(None) if kept is None else list(kept)
        wanted = as_rows(layer, before[name][1])[:, kept]
        if name in joins:
            join, norm = joins[name]
            gap = as_rows(layer, before[join][0][1])[:, kept] - as_rows(layer, after[join][0][1])
            if norm is not None:
                norm = cut.get_submodule(norm)
                gap = gap / (norm.weight / (norm.running_var + norm.eps).sqrt())
            wanted = wanted + gap.detach()
        rows = unfolded(layer, after[name][0][0])
        weight, bias = ridge(rows, wanted, start.weight.flatten(1), start.bias)
        torch.testing.assert_close(layer.weight.flatten(1), weight, rtol=1e-5, atol=1e-6, msg=name)
        if bias is not None:
            torch.testing.assert_close(layer.bias, bias, rtol=1e-5, atol=1e-6, msg=name)


ADD = {
    "a + b": operator.add,
    "b + a": lambda own, other: other + own,
    "a += b": operator.iadd,
    "b += a": lambda own, other: operator.iadd(other.clone(), own),
    "torch.add": torch.add,
    "a.add": lambda own, other: own.add(other),
    "a.add_": lambda own, other: own.add_(other),
}


def two_blocks(**options):
    return network(Block(**options), Block(**options))


# name: (network, residual, the sum and the norm before it that go with each conv2)
FIRST, SECOND = ("3.join", "3.bn2"), ("4.join", "4.bn2")
BOTH = {"3.conv2": FIRST, "4.conv2": SECOND}
NO_NORM = {"3.conv2": ("3.join", None), "4.conv2": ("4.join", None)}
FITTED = {
    "chain": (chain, False, {}),
    **{name: (partial(two_blocks, add=add), False, BOTH) for name, add in ADD.items()},
    "projection": (lambda: network(Block(), Block(8, 10)), False, BOTH),
    "sum without norm": (partial(two_blocks, norm=nn.Identity), False, NO_NORM),
    "projection, x + f(x)": (
        lambda: network(Block(add=ADD["b + a"]), Block(8, 10, add=ADD["b + a"])),
        False,
        BOTH,
    ),
    "activation before the sum": (partial(two_blocks, inner=torch.tanh, last=nothing), False, {}),
    "in-place activation before the sum": (
        partial(two_blocks, inner=partial(functional.relu, inplace=True), last=nothing),
        False,
        {},
    ),
    "in-place factor before the sum": (
        partial(two_blocks, inner=lambda out: out.mul_(0.25), last=nothing),
        False,
        {},
    ),
    "linear bottleneck": (partial(two_blocks, last=nothing), False, BOTH),
    "linear bottleneck, x + f(x)": (partial(two_blocks, add=ADD["b + a"], last=nothing), False, BOTH),
    "x + f(x) after a linear layer": (
        lambda: network(Straight(), Block(add=ADD["b + a"], last=nothing)),
        False,
        {"4.conv2": SECOND},
    ),
    "x + f(x) after a sum in place": (
        lambda: network(Block(add=operator.iadd, last=nothing), Block(add=ADD["b + a"], last=nothing)),
        False,
        BOTH,
    ),
    "pre-activation": (lambda: network(PreActivation(), PreActivation()), False, NO_NORM),
    "pre-activation in place": (
        lambda: network(*(PreActivation(ADD["a += b"]) for _ in range(2))),
        False,
        NO_NORM,
    ),
    "pre-activation, stream cut": (
        lambda: network(PreActivation(), PreActivation()),
        True,
        NO_NORM,
    ),
    "stream cut": (two_blocks, True, BOTH),
}


@pytest.mark.parametrize("later", [False, True], ids=["consumers", "all layers"])
@pytest.mark.parametrize("name", FITTED)
def test_every_layer_is_the_best_one_on_what_the_cut_network_gives_it(name, later):
    build, residual, joins = FITTED[name]
    model, plan, groups, cut = cut_in_half(build, residual=residual, later=later)
    assert_fitted(model, plan, groups, cut, joins, later=later)


@pytest.mark.parametrize("add", ["a + b", "a += b"])
def test_sums_are_written_anew_in_parts(add, monkeypatch):
    """What is added to is what the refitted layer gives, whatever the number of samples at a time."""
    build = partial(two_blocks, add=ADD[add])
    _, _, _, expected = cut_in_half(build)
    monkeypatch.setattr("acsp_lightning.functional.precision.BLOCK", 3 * 6 * 64)
    _, _, _, found = cut_in_half(build)
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


ROOMS = {"all wait": 2**40, "some wait": 150_000, "none waits": 0}


def assert_alike(found, expected):
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", FITTED)
def test_samples_in_batches_teach_the_same(name, room, monkeypatch):
    """Of uneven sizes, and whether passes wait for each other or begin anew."""
    monkeypatch.setattr("acsp_lightning.structure.lockstep.ROOM", ROOMS[room])
    build, residual, _ = FITTED[name]
    _, _, _, expected = cut_in_half(build, residual=residual)
    size = {"all wait": 7, "some wait": 13, "none waits": 17}[room]
    _, _, _, found = cut_in_half(build, residual=residual, size=size)
    assert_alike(found, expected)


def test_positions_are_the_same_in_batches(monkeypatch):
    monkeypatch.setattr("acsp_lightning.structure.refit.POSITIONS", 5)
    _, _, _, expected = cut_in_half(two_blocks)
    for size in (1, 9, 39):
        _, _, _, found = cut_in_half(two_blocks, size=size)
        assert_alike(found, expected)


def test_fewer_samples_than_inputs_in_batches():
    """Linear layers in the dual form, of 3072 inputs and 40 samples."""

    def build():
        return nn.Sequential(
            nn.Conv2d(3, 96, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6144, 16),
            nn.ReLU(),
            nn.Linear(16, 4),
        )

    _, _, _, expected = cut_in_half(build, fold=False)
    _, _, _, found = cut_in_half(build, fold=False, size=7)
    assert_alike(found, expected)
    bare = cut_in_half(build, fold=False, refit=False)[-1]
    assert not torch.allclose(bare[3].weight, found[3].weight)


def test_several_arguments_and_shapes_in_batches():
    """A tensor and a dict; a mask that all samples share goes to every batch whole."""

    def forward(net, x, more):
        scaled = functional.relu(net.first(x)) * more["scale"][:, None, None, None]
        return net.second(scaled * more["mask"]).mean((2, 3)) * more["factor"]

    torch.manual_seed(0)
    model = settled_wired(forward, first=nn.Conv2d(3, 8, 3), second=nn.Conv2d(8, 4, 3))
    more = {"scale": torch.linspace(1, 2, 40).double(), "mask": torch.rand(6, 6).double(), "factor": 2}
    groups = trace_groups(model, (X[:2], {**more, "scale": more["scale"][:2]})).groups
    plan, cuts = halves(groups), []
    for size in (40, 11):
        scales = more["scale"].split(size)
        batches = [(x, {**more, "scale": s}) for x, s in zip(X.split(size), scales, strict=True)]
        cuts.append(copy.deepcopy(model))
        prune(cuts[-1], plan, None, refit=prepare_refit(model, consumers(groups), batches))
    assert_alike(cuts[1], cuts[0])


def settled_wired(forward, **layers):
    return randomized(Wired(forward, **layers), 0).eval()


def test_targets_lie_in_a_file_where_they_are_many(monkeypatch):
    _, _, _, expected = cut_in_half(two_blocks)
    monkeypatch.setattr("acsp_lightning.structure.store.ROOM", 30_000)
    _, _, _, found = cut_in_half(two_blocks, size=7)
    assert_alike(found, expected)


def test_of_two_fitted_sides_of_a_sum_one_makes_up_for_the_other():
    model, plan, groups, cut = cut_in_half(lambda: network(Block(8, 10), Block(10, 10)), residual=True)
    swapped = copy.deepcopy(model), copy.deepcopy(cut)
    assert plan.kept("3.conv2", "in")
    assert plan.kept("3.down.0", "in")
    try:
        assert_fitted(model, plan, groups, cut, BOTH)
    except AssertionError:
        for net in swapped:
            net[3].join.register_forward_pre_hook(lambda _, pair: pair[::-1])
        joins = {"4.conv2": SECOND, "3.down.0": ("3.join", "3.down.1")}
        assert_fitted(swapped[0], plan, groups, swapped[1], joins)


def test_closed_form_of_one_block_by_hand():
    """No folding, no norm, no bias: the second convolution of a block against lstsq alone."""

    def forward(net, x):
        return x.repeat(1, 3, 1, 1)[:, :8] + net.second(functional.relu(net.first(x)))

    def build():
        return Wired(
            forward,
            first=nn.Conv2d(3, 10, 3, padding=1),
            second=nn.Conv2d(10, 8, 3, padding=1, bias=False),
        )

    _, plan, groups, cut = cut_in_half(build)
    assert [group.name for group in groups] == ["first"]
    torch.manual_seed(0)
    model = settled(build())
    with torch.no_grad():
        inputs = functional.relu(model.first(X))
        wanted = model.second(inputs).movedim(1, -1).reshape(-1, 8)
        rows = functional.unfold(inputs[:, ::2], 3, padding=1).transpose(1, 2).reshape(-1, 5 * 9)
        best = np.linalg.lstsq(rows.numpy(), wanted.numpy(), rcond=None)[0]
        least = (rows.numpy() @ best - wanted.numpy()).std()
        found = cut.second(functional.relu(cut.first(X))).movedim(1, -1).reshape(-1, 8)
    assert plan.kept("second", "in") == (0, 2, 4, 6, 8)
    torch.testing.assert_close(
        cut.second.weight.flatten(1).detach(), torch.from_numpy(best.T), atol=2e-3, rtol=0.0
    )
    assert float((found - wanted).std()) == pytest.approx(least, rel=1e-4)


# -- planted redundancy ------------------------------------------------------------------------------


def with_copies(model, groups):
    """Let the second half of the channels of every group be copies of the first half."""
    with torch.no_grad():
        for group in groups:
            half = group.width // 2
            for side in (*group.producers, *group.passthrough):
                layer = model.get_submodule(side.layer)
                for tensor in [*layer.parameters(), *layer.buffers()]:
                    if tensor.ndim:
                        tensor[half : 2 * half] = tensor[:half]
    return model


PLANTED = {
    "chain": (chain, False),
    "identity": (two_blocks, False),
    "identity, stream": (two_blocks, True),
    "in place": (partial(two_blocks, add=operator.iadd), True),
    "projection": (lambda: network(Block(), Block(8, 10)), False),
    "projection, stream": (lambda: network(Block(8, 10), Block(10, 10)), True),
    "no norm": (partial(two_blocks, norm=nn.Identity), True),
    "post-activation": (partial(two_blocks, inner=functional.relu, last=nothing), True),
    "pre-activation": (lambda: network(PreActivation(), PreActivation()), True),
    "linear bottleneck": (partial(two_blocks, last=nothing), True),
}


@pytest.mark.parametrize("name", PLANTED)
def test_copies_cost_nothing(name):
    build, residual = PLANTED[name]
    torch.manual_seed(0)
    model = randomized(build())
    groups = offered(model, (X[:4],), residual=residual).groups
    model = with_copies(model, groups)
    plan = build_plan(
        groups, {g.name: [*range(g.width // 2), *range(g.width // 2 * 2, g.width)] for g in groups}
    )
    cut = pruned(model, plan, groups)
    bare = pruned(model, plan, groups, refit=False, fold=False)
    for data in (X, FRESH):
        assert error(model, cut, data) < 1e-4
        assert error(model, bare, data) > 1e-2


def test_constant_channels_go_into_the_bias():
    """Folding knows no bias: what it leaves of a channel that is always the same, the refit takes."""

    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            nn.Flatten(),
            nn.Linear(96, 4),
        )

    torch.manual_seed(0)
    model = settled(build())
    with torch.no_grad():
        model[1].weight[4:] = 0.0
        model[1].bias[4:] = 2.0
    groups = offered(model, (X[:4],)).groups
    plan = build_plan(groups, {"0": range(4)})
    assert error(model, pruned(model, plan, groups), FRESH) < 1e-3
    assert error(model, pruned(model, plan, groups, refit=False), FRESH) > 1e-2


# -- how much it helps -------------------------------------------------------------------------------


def error(model, cut, data):
    """Share of the outputs' norm."""
    with torch.no_grad():
        whole = model(data)
        return float((cut(data) - whole).norm() / whole.norm())


@pytest.mark.parametrize("residual", [False, True])
def test_each_part_brings_residual_networks_closer(residual):
    ways = {
        "without": {"refit": False, "fold": False},
        "folded": {"refit": False},
        "refitted": {"sums": False},
        "corrected": {},
        "all layers": {"later": True},
    }
    errors = {name: 1.0 for name in ways}
    for seed in range(4):
        torch.manual_seed(seed)
        model = settled(network(*(Block(add=operator.iadd) for _ in range(4))), seed=seed)
        groups = offered(model, (X[:4],), residual=residual).groups
        plan = halves(groups)
        for name, options in ways.items():
            errors[name] *= error(model, pruned(model, plan, groups, **options), FRESH)
    assert errors["corrected"] < errors["refitted"] < errors["folded"] < errors["without"]
    # Where streams are cut, all layers lose inputs but those of the stem.
    assert residual or errors["all layers"] < 0.9 * errors["corrected"]


@pytest.mark.parametrize("name", CUT)
def test_no_structure_is_worse_off_than_by_folding_alone(name):
    case = CUT[name]
    model = built(case)
    (data,) = inputs_of(case, batch=48)
    groups = offered(model, (data[:2],), residual=case.residual).groups
    plan = random_plan(groups, seed=3)
    folded = error(model, pruned(model, plan, groups, data, refit=False), data)
    # Layer by layer is not the network: a gate can turn a smaller error into a larger one.
    assert error(model, pruned(model, plan, groups, data), data) < 1.1 * folded


# -- sums that are none ------------------------------------------------------------------------------


def second(add, **options):
    """After a block whose output is wrong, so that there is something to make up for."""
    return lambda: network(Block(), Block(add=add, **options))


class Broadcast(Block):
    def forward(self, x):
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return self.join(out, x.mean((2, 3), keepdim=True))


NO_SUM = {
    "broadcast": lambda: network(Block(), Broadcast()),
    "number": second(lambda own, _: own + 1.0),
    "difference": second(operator.sub),
    "reversed difference": second(lambda own, other: other - own),
    "product": second(operator.mul),
    "alpha": second(lambda own, other: torch.add(own, other, alpha=2)),
    "alpha of own": second(lambda own, other: torch.add(other, own, alpha=2)),
    "alpha, method": second(lambda own, other: own.add(other, alpha=-1.0)),
    "alpha, in place": second(lambda own, other: own.add_(other, alpha=-1.0)),
    "factor": second(lambda own, other: 0.5 * own + other),
    "what is made of itself": second(lambda own, _: own + functional.avg_pool2d(own, 3, 1, 1)),
    "twice itself": second(lambda own, _: own + own),
    "a norm of the batch": second(operator.add, norm=partial(nn.BatchNorm2d, track_running_stats=False)),
}


@pytest.mark.parametrize("name", NO_SUM)
def test_what_is_no_sum_of_two_corrects_nothing(name):
    model, plan, groups, cut = cut_in_half(NO_SUM[name])
    assert plan.kept("4.conv2", "in")
    assert_fitted(model, plan, groups, cut, {"3.conv2": FIRST})


def test_an_output_that_two_sums_read():
    """It makes up for the error of the first of them."""

    class Twice(Block):
        def forward(self, x):
            out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            return functional.relu(self.join(out, x)) + torch.tanh(out + 2 * x)

    model, plan, groups, cut = cut_in_half(lambda: network(Block(), Twice()))
    assert_fitted(model, plan, groups, cut, BOTH)


def test_channels_that_the_norm_shrinks_beside_one_that_goes():
    """What a norm can make up for does not depend on whether its largest channel is still there."""
    torch.manual_seed(0)
    model = settled(two_blocks())
    with torch.no_grad():
        model[3].bn2.weight[0] = 3000.0
        for reader in (model[4].conv1, model[7]):  # nobody reads that channel
            reader.weight[:, 0] = 0.0
    groups = offered(model, (X[:4],), residual=True).groups
    kept = {group.name: range(1, group.width) for group in groups}
    plan = build_plan(groups, kept)
    corrected, plain = (
        error(model, pruned(model, plan, groups, sums=sums), X) for sums in (True, False)
    )
    assert corrected < 1.1 * plain


def test_the_way_of_adding_changes_no_target():
    targets = []
    for add in (ADD["a + b"], ADD["a += b"]):
        torch.manual_seed(0)
        model = settled(network(PreActivation(add), PreActivation(add)))
        targets.append(prepare_refit(model, ["3.conv2", "4.conv2"], [(X,)]).targets)
    for layer, target in targets[0].items():
        assert target.power == pytest.approx(targets[1][layer].power)
        assert target.summed
        assert (target.scale is None) == (targets[1][layer].scale is None)


# -- targets -----------------------------------------------------------------------------------------


def test_targets_are_what_the_uncut_network_gives():
    torch.manual_seed(0)
    model = settled(network(Block()))
    (target,) = prepare_refit(model, ["3.conv2"], [(X,)]).targets.values()
    seen = watched(model, ["3.conv2", "3.join"], X)
    scale = (model[3].bn2.weight / (model[3].bn2.running_var + 1e-5).sqrt()).detach()
    (part,) = target.parts
    assert part.shape == (40, 8, 8, 8)
    assert part.rows.tolist() == list(range(40 * 64))
    own = as_rows(model[3].conv2, seen["3.conv2"][1])
    other = as_rows(model[3].conv2, seen["3.join"][0][1])
    assert target.summed
    torch.testing.assert_close(part.outputs, own + other / scale)
    torch.testing.assert_close(target.scale, scale)
    # Of the sum as it is in the network.
    assert target.power == pytest.approx(float((own * scale + other).var(0, correction=0).sum()))


def test_large_maps_are_compared_at_64_positions_of_each_image():
    torch.manual_seed(0)
    model = settled(chain())
    images = torch.randn(3, 3, 20, 20, dtype=torch.float64)
    first, second = (prepare_refit(model, ["3", "5"], [(images,)], seed).targets for seed in (0, 1))
    for layer in ("3", "5"):
        (one,), (other,) = first[layer].parts, second[layer].parts
        assert (one.rows // (one.shape[2] * one.shape[3])).bincount().tolist() == [64] * 3
        assert not torch.equal(one.rows, other.rows)


def test_transposed_and_depthwise_layers_are_passed_over():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    targets = prepare_refit(model.double(), ["0", "1", "2"], [(X,)]).targets
    assert list(targets) == ["2"]


def test_a_layer_called_by_name_of_its_argument():
    def build():
        def forward(net, x):
            return net.second(input=functional.relu(net.first(x)))

        return Wired(forward, first=nn.Conv2d(3, 8, 3), second=nn.Conv2d(8, 4, 1))

    model, plan, groups, cut = cut_in_half(build, fold=False)
    assert error(model, cut, X) < error(model, pruned(model, plan, groups, refit=False, fold=False), X)


class PadsItself(nn.Conv2d):
    """As the "same" padding of TensorFlow, of which the layer's attributes say nothing."""

    def forward(self, x):
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def test_a_layer_with_a_forward_of_its_own_is_not_made_worse():
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            PadsItself(8, 6, 2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 4),
        )

    torch.manual_seed(0)
    model = settled(build())
    groups = offered(model, (X[:4],)).groups
    plan = build_plan(groups, {"0": range(0, 8, 2)})
    folded = error(model, pruned(model, plan, groups, refit=False), X)
    assert error(model, pruned(model, plan, groups), X) < 1.02 * folded


def test_a_layer_whose_output_a_hook_changes_is_not_made_worse():
    torch.manual_seed(0)
    model = settled(two_blocks())
    model[4].conv2.register_forward_hook(lambda _module, _arguments, output: 3 * output)
    groups = offered(model, (X[:4],)).groups
    plan = halves(groups)
    folded = error(model, pruned(model, plan, groups, refit=False), X)
    assert error(model, pruned(model, plan, groups), X) < 1.02 * folded


# -- what must stay as it was ------------------------------------------------------------------------


def _sizes(module):
    return {key: value for key, value in vars(module).items() if type(value) is int}


def everything(model):
    """Identity, values, gradients, flags, sizes and hooks of all in a model."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return (
        [(name, id(tensor), tensor.requires_grad, id(tensor.grad)) for name, tensor in tensors],
        [
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), _sizes(m))
            for m in model.modules()
        ],
    ), [tensor.detach().clone() for _, tensor in tensors]


def assert_same(before, after):
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))


def trained():
    """With gradients, in train mode but for one layer, with frozen parameters and dropout."""
    torch.manual_seed(0)
    model = settled(network(Block(), Block(8, 10)))
    model.insert(5, nn.Dropout(0.5))
    model.train()
    model[3].bn1.eval()
    model(X).square().mean().backward()
    model[4].conv2.weight.requires_grad_(False)
    return model


def test_preparing_leaves_no_trace():
    model = trained()
    before, data, random = everything(model), X.clone(), torch.get_rng_state()
    with torch.enable_grad():
        targets = prepare_refit(model, ["3.conv2", "4.conv2"], [(X,)]).targets
        assert torch.is_grad_enabled()
    assert_same(before, everything(model))
    assert torch.equal(X, data)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(t.parts[0].outputs.requires_grad for t in targets.values())


def tied_to_another(model):
    model[5].unused = nn.Linear(10, 5).double()
    model[5].unused.weight = model[8].weight


CONSUMERS, DOWN = ["3.conv2.weight", "4.conv2.weight"], ["4.down.0.weight"]
FIRST_CONV, HEAD = ["4.conv1.weight"], ["8.weight", "8.bias"]
CHANGED = {
    "consumers": (False, nothing, CONSUMERS),
    "all layers": (True, nothing, [*CONSUMERS, *DOWN, *FIRST_CONV, *HEAD]),
    "frozen": (True, lambda net: net[4].conv1.requires_grad_(False), [*CONSUMERS, *DOWN, *HEAD]),
    "a frozen bias": (
        True,
        lambda net: net[8].bias.requires_grad_(False),
        [*CONSUMERS, *DOWN, *FIRST_CONV],
    ),
    "tied": (True, tied_to_another, [*CONSUMERS, *DOWN, *FIRST_CONV]),
}


@pytest.mark.parametrize("case", CHANGED)
def test_only_what_may_be_fitted_changes(case):
    later, prepare, expected = CHANGED[case]
    model = trained()
    groups = offered(model, (X[:4],), residual=False).groups
    prepare(model)
    free = correctable_layers(model) if later else ()
    refit = prepare_refit(model, consumers(groups), [(X,)], later=free)
    kept_inputs = refit.inputs[0][0].clone()
    plan = halves(groups)
    fitted = copy.deepcopy(model)
    prune(model, plan, (X[:2],), groups=groups)
    bare, data, random = everything(model), X.clone(), torch.get_rng_state()
    prune(fitted, plan, (X[:2],), groups=groups, refit=refit)
    found = everything(fitted)
    assert [(n, flag) for n, _, flag, _ in bare[0][0]] == [(n, flag) for n, _, flag, _ in found[0][0]]
    assert bare[0][1] == found[0][1]
    names = [name for name, *_ in bare[0][0]]
    norms = tuple(f"{name}." for name, m in fitted.named_modules() if isinstance(m, nn.BatchNorm2d))
    changed = [
        n
        for n, a, b in zip(names, bare[1], found[1], strict=True)
        if not torch.equal(a, b) and not n.startswith(norms)
    ]
    assert sorted(changed) == sorted(expected)
    assert torch.equal(X, data)
    assert torch.equal(refit.inputs[0][0], kept_inputs)
    assert torch.equal(torch.get_rng_state(), random)
    fitted(X).square().mean().backward()  # and it goes on learning
    assert fitted[3].conv2.weight.grad is not None
    assert fitted[4].conv2.weight.grad is None


class Backwards(nn.Linear):
    """Its argument has a name of its own."""

    def forward(self, x):
        return super().forward(x)


class Changed(nn.Linear):
    """Returns something else than the product."""

    def __init__(self, change, *sizes):
        super().__init__(*sizes)
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


def pooled(net, x):
    return net.mix(functional.relu(net.cut(x))).mean((2, 3))


# name: (the odd layer, what the network makes of it and of its own features (N, 5))
ODD = {
    "one row without samples": (
        nn.Linear(3, 5),
        lambda net, _, h: h + net.odd(torch.ones(3).double()),
    ),
    "a keyword of its own": (Backwards(5, 5), lambda net, _, h: net.odd(x=h)),
    "a tuple": (Changed(lambda y: (y, y), 5, 5), lambda net, _, h: net.odd(h)[1]),
    "another shape": (
        Changed(lambda y: y.unflatten(-1, (2, 3)), 5, 6),
        lambda net, _, h: net.odd(h).flatten(1),
    ),
    "a shape without channels": (Changed(torch.sum, 5, 5), lambda net, _, h: h + net.odd(h)),
    "maps without samples": (
        nn.Conv2d(3, 5, 3),
        lambda net, x, h: h + torch.stack([net.odd(image) for image in x]).mean((2, 3)),
    ),
    "sparse rows": (nn.Linear(5, 5), lambda net, _, h: h + net.odd(h.detach().to_sparse())),
    "no rows at all": (nn.Linear(5, 5), lambda net, _, h: h + net.odd(h[:0]).sum()),
    "rows of a table": (nn.Linear(3, 5), lambda net, x, h: h + net.odd(x[0, :, 0].T).mean(0)),
    "called twice": (nn.Linear(5, 5), lambda net, _, h: net.odd(net.odd(h).relu())),
    "fewer rows, by their values": (
        nn.Linear(5, 5),
        lambda net, _, h: h + net.odd(h[h[:, 0] > h[:, 0].detach().mean().round()]).mean(0),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_nobody_knows_how_to_fit_is_left_alone(name):
    """Layers that lose nothing may be anything, and be called in any way."""
    odd, use = ODD[name]
    layers = {"cut": nn.Conv2d(3, 8, 3), "mix": nn.Conv2d(8, 5, 3), "odd": odd}
    model = settled_wired(
        lambda net, x: net.last(use(net, x, pooled(net, x))),
        **layers,
        last=nn.Linear(6 if name == "another shape" else 5, 3),
    )
    plan = PruningPlan((SideCut("cut", "out", 8, (0, 2, 5)), SideCut("mix", "in", 8, (0, 2, 5))))
    batches, free = [(x,) for x in X.split(15)], correctable_layers(model)
    assert "odd" in free
    refit = prepare_refit(model, ["mix"], batches, later=free)
    cut, bare = copy.deepcopy(model), copy.deepcopy(model)
    prune(cut, plan, (X[:2],), refit=refit)
    prune(bare, plan, (X[:2],))
    assert all(map(torch.equal, cut.odd.parameters(), model.odd.parameters()))
    assert not torch.equal(cut.mix.weight, bare.mix.weight)
    assert error(model, cut, X) < error(model, bare, X)
    assert refit.samples == len(X)
    assert thinned(refit, 2).samples == len(X) // 2


@pytest.mark.parametrize("size", [40, 15])
def test_rows_that_are_others_after_the_cut(size):
    """In the first batch values decide for fewer; the layers behind are fitted to all samples."""

    def forward(net, x):
        h = pooled(net, x)
        fewer = torch.equal(x[0], X[0]) and not torch.isclose(h.norm(), net.norm, rtol=1e-9)
        return net.last(h + net.odd(h[int(fewer) :]).mean(0))

    layers = {"cut": nn.Conv2d(3, 8, 3), "mix": nn.Conv2d(8, 5, 3), "odd": nn.Linear(5, 5)}
    model = settled_wired(forward, **layers, last=nn.Linear(5, 3))
    batches, free = [(x,) for x in X.split(size)], correctable_layers(model)
    with torch.no_grad():
        model.norm = pooled(model, batches[0][0]).norm()
    plan = PruningPlan((SideCut("cut", "out", 8, (0, 2, 5)), SideCut("mix", "in", 8, (0, 2, 5))))
    refit = prepare_refit(model, ["mix"], batches, later=free)
    assert set(refit.later) >= {"odd", "last"}
    cut = copy.deepcopy(model)
    prune(cut, plan, (X[:2],), refit=refit)
    assert not torch.isclose(pooled(cut, batches[0][0]).norm(), cut.norm, rtol=1e-9)
    assert all(map(torch.equal, cut.odd.parameters(), model.odd.parameters()))
    read = torch.cat([watched(cut, ["last"], x)["last"][0][0] for (x,) in batches])
    wanted = torch.cat([watched(model, ["last"], x)["last"][1] for (x,) in batches])
    weight, bias = ridge(read, wanted, model.last.weight, model.last.bias)
    torch.testing.assert_close(cut.last.weight, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cut.last.bias, bias, rtol=1e-5, atol=1e-6)


def test_few_rows_fit_only_what_lost_inputs():
    """Those of the classifier are one a sample."""
    model, plan, groups, _ = cut_in_half(two_blocks)
    fitted = [
        prepare_refit(model, consumers(groups), [(X[:count],)], later=correctable_layers(model))
        for count in (40, 31)
    ]
    assert ["7" in refit.layers(plan) for refit in fitted] == [True, False]
    assert "4.conv1" in fitted[1].layers(plan)
    assert thinned(fitted[0], 2).layers(plan) == fitted[0].layers(plan)


def test_layers_are_fitted_wherever_the_first_without_target_is():
    """A transposed convolution is no product of patches, but what runs after it reads something else."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3), nn.Conv2d(6, 5, 3)]
    model = randomized(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)))
    plan = PruningPlan((SideCut("0", "out", 8, (0, 2, 5)), SideCut("1", "in", 8, (0, 2, 5))))
    refit = prepare_refit(model, ["1"], [(X,)], later=correctable_layers(model))
    cut, bare = copy.deepcopy(model), copy.deepcopy(model)
    prune(cut, plan, None, refit=refit)
    prune(bare, plan, None)
    assert error(model, cut, X) < 0.9 * error(model, bare, X)


def test_a_frozen_copy_is_fitted_as_the_network_is():
    model, plan, groups, expected = cut_in_half(two_blocks, later=True)
    free = correctable_layers(model)
    frozen = copy.deepcopy(model).requires_grad_(False)
    assert not correctable_layers(frozen)
    refit = prepare_refit(frozen, consumers(groups), [(X,)], later=free)
    moments = moments_of(model, groups, X)
    prune(frozen, plan, None, groups=groups, input_moments=moments, refit=refit)
    assert_alike(frozen, expected)


def test_a_forward_that_writes_to_its_input():
    class Writes(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mul_(0.5))

    torch.manual_seed(0)
    model = settled(Writes(*chain()), X.clone())
    data, groups = X.clone(), offered(model, (X[:4].clone(),)).groups
    plan = halves(groups)
    targets = prepare_refit(model, consumers(groups), [(data,)])
    prune(model, plan, (data[:2],), groups=groups, refit=targets)
    assert torch.equal(data, X)


class Breaks(nn.Sequential):
    """Once it is told to, its forward breaks at the end of a cut network, or before its last layer."""

    breaks = None
    last = 0

    def __init__(self, *layers):
        super().__init__(*layers)
        self.whole = sum(p.numel() for p in self.parameters())

    def forward(self, x):
        for layer in self[: len(self) - self.last]:
            x = layer(x)
        if self.breaks is not None and sum(p.numel() for p in self.parameters()) < self.whole:
            x = self.breaks(x)
        return self[len(self) - self.last :](x) if self.last else x


def stop(kind, out):
    raise kind("stop")


def three_blocks():
    return network(Block(), Block(8, 10), Block(10, 10))


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("size", [40, 15])
@pytest.mark.parametrize("build", [chain, three_blocks])
def test_a_failure_in_the_refit_puts_everything_back(kind, fold, size, build):
    torch.manual_seed(0)
    model = settled(Breaks(*build()))
    groups = offered(model, (X[:4],), residual=False).groups
    model.train()
    model.breaks, model.last = partial(stop, kind), 1
    batches, free = [(x,) for x in X.split(size)], correctable_layers(model)
    refit = prepare_refit(model, consumers(groups), batches, later=free)
    moments = moments_of(model, groups, X) if fold else None
    before = everything(model)
    with pytest.raises(kind, match="stop"):
        prune(model, halves(groups), (X[:2],), groups=groups, input_moments=moments, refit=refit)
    assert_same(before, everything(model))


@pytest.mark.parametrize("build", [chain, three_blocks])
def test_a_shape_that_is_wrong_after_the_refit_puts_everything_back(build):
    torch.manual_seed(0)
    model = settled(Breaks(*build()))
    groups = offered(model, (X[:4],), residual=False).groups
    model.breaks = operator.itemgetter((slice(None), slice(1)))
    refit = prepare_refit(model, consumers(groups), [(X,)], later=correctable_layers(model))
    before = everything(model)
    with pytest.raises(RuntimeError, match="put back"):
        prune(model, halves(groups), (X[:2],), groups=groups, refit=refit)
    assert_same(before, everything(model))


def test_samples_with_nan_leave_the_folded_weights():
    torch.manual_seed(0)
    model = settled(chain())
    groups = offered(model, (X[:4],)).groups
    plan, data = halves(groups), X.clone()
    data[5] = torch.nan
    refit = prepare_refit(model, consumers(groups), [(data,)])
    moments = moments_of(model, groups, X)
    folded = pruned(model, plan, groups, refit=False)
    prune(model, plan, (X[:2],), groups=groups, input_moments=moments, refit=refit)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), folded.parameters(), strict=True))


# -- kinds of models ---------------------------------------------------------------------------------


def test_single_precision_comes_as_close_as_double():
    torch.manual_seed(0)
    model = settled(two_blocks())
    groups = offered(model, (X[:4],)).groups
    plan = halves(groups)
    double = error(model, pruned(model, plan, groups), X)
    single = copy.deepcopy(model).float()
    cut = pruned(single, plan, groups, X.float(), fold=False)
    assert cut[3].conv2.weight.dtype == torch.float32
    assert error(single, cut, X.float()) == pytest.approx(double, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    model = settled(two_blocks())
    groups = offered(model, (X[:4],)).groups
    model, data = model.to(dtype), X.to(dtype)
    plan = halves(groups)
    cut = pruned(model, plan, groups, data, fold=False)
    assert {parameter.dtype for parameter in cut.parameters()} == {dtype}
    assert error(model, cut, data) < error(
        model, pruned(model, plan, groups, data, refit=False, fold=False), data
    )


def test_channels_last_weights_stay_channels_last():
    torch.manual_seed(0)
    model = settled(two_blocks())
    groups = offered(model, (X[:4],)).groups
    plan = halves(groups)
    expected = pruned(model, plan, groups)
    data = X.to(memory_format=torch.channels_last)
    cut = pruned(model.to(memory_format=torch.channels_last), plan, groups, data)
    assert cut[3].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(cut[3].conv2.weight, expected[3].conv2.weight, check_stride=False)


def test_compiled_modules_are_looked_into():
    torch.manual_seed(0)
    model = settled(two_blocks())
    groups = offered(model, (X[:4],)).groups
    expected = pruned(model, halves(groups), groups, fold=False)
    model[3].compile(backend="eager")
    with torch.no_grad():
        model(X)
    refit = prepare_refit(model, consumers(groups), [(X,)])
    prune(model, halves(groups), (X[:2],), groups=groups, refit=refit)
    for name, weight in expected.named_parameters():
        assert torch.equal(model.get_parameter(name), weight), name
    torch.compiler.reset()


def test_hooks_of_the_user_run_in_every_pass_and_stay():
    torch.manual_seed(0)
    model = settled(two_blocks())
    doubled = model[3].conv1.register_forward_pre_hook(lambda _, arguments: (2 * arguments[0],))
    groups = offered(model, (X[:4],)).groups
    plan = halves(groups)
    cut = pruned(model, plan, groups)
    assert len(cut[3].conv1._forward_pre_hooks) == 1
    assert error(model, cut, X) < error(model, pruned(model, plan, groups, refit=False), X)
    doubled.remove()


# -- half of the samples -------------------------------------------------------------------------------
def consumers_of(model):
    return [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)][1:]


def check_same_targets(found, expected):
    assert found.targets.keys() == expected.targets.keys()
    for layer, target in expected.targets.items():
        mine = found.targets[layer]
        for part, wanted in zip(mine.parts, target.parts, strict=True):
            assert part.shape == wanted.shape, layer
            order, other = part.rows.argsort(), wanted.rows.argsort()
            assert torch.equal(part.rows[order], wanted.rows[other]), layer
            torch.testing.assert_close(part.outputs[order], wanted.outputs[other])
        assert mine.summed is target.summed, layer
        assert (mine.scale is None) is (target.scale is None), layer
        if target.scale is not None:
            torch.testing.assert_close(mine.scale, target.scale)


@pytest.mark.parametrize("samples", [40, 39, 3])
@pytest.mark.parametrize("sums", [False, True])
def test_half_a_refit_is_one_of_every_other_sample(sums, samples):
    model = settled(network(Block(), PreActivation()) if sums else chain())
    layers = consumers_of(model)
    whole = prepare_refit(model, layers, [(X[:samples],)])
    found = thinned(whole, 2)
    assert torch.equal(found.inputs[0][0], X[:samples:2])
    check_same_targets(found, prepare_refit(model, layers, [(X[:samples:2],)]))
    assert any(target.summed for target in found.targets.values()) is sums
    assert len(whole.inputs[0][0]) == samples, "the whole one stays"


def test_positions_drawn_at_random_are_those_of_the_samples_that_stay(monkeypatch):
    """Of a map of more positions than are compared: each row is still what the layer gave there."""
    monkeypatch.setattr("acsp_lightning.structure.refit.POSITIONS", 5)
    model = settled(chain())
    found = thinned(prepare_refit(model, consumers_of(model), [(X,)]), 2)
    seen = {}
    for layer in found.targets:
        module = model.get_submodule(layer)
        module.register_forward_hook(lambda m, a, out, layer=layer: seen.update({layer: out.clone()}))
    with torch.no_grad():
        model(X[::2])
    for layer, target in found.targets.items():
        rows = seen[layer].movedim(1, -1).reshape(-1, seen[layer].shape[1])
        (part,) = target.parts
        assert part.shape == seen[layer].shape
        torch.testing.assert_close(part.outputs, rows[part.rows])
    assert found.targets["3"].num_rows in range(70, 131), "about five positions of each of twenty"


def test_half_a_refit_fits_like_one_of_half_the_samples():
    model = settled(chain())
    layers = consumers_of(model)
    plan = halving(model)
    halves = (
        thinned(prepare_refit(model, layers, [(X,)]), 2),
        prepare_refit(model, layers, [(X[::2],)]),
    )
    first, second = (copy.deepcopy(model) for _ in halves)
    for cut, refit in zip((first, second), halves, strict=True):
        prune(cut, plan, None, refit=refit)
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert not torch.equal(first(FRESH), model(FRESH))


def halving(model):
    groups = trace_groups(model, (X[:2],)).groups
    return build_plan(groups, {group.name: range(group.width // 2) for group in groups})


@pytest.mark.parametrize("samples", [40, 39, 8])
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_part_of_what_comes_in_batches(samples, size, step):
    """Every second or third sample of all, not of each batch, and in batches as full as before."""
    model = settled(network(Block(), PreActivation()))
    layers = consumers_of(model)
    whole = prepare_refit(model, layers, [(x,) for x in X[:samples].split(size)])
    found, part = thinned(whole, step), X[:samples:step]
    assert torch.equal(torch.cat([batch[0] for batch in found.inputs]), part)
    lengths = [len(batch[0]) for batch in found.inputs]
    largest = max(len(batch[0]) for batch in whole.inputs)
    assert max(lengths) <= largest, "a device may hold no more"
    assert all(one + other > largest for one, other in itertools.pairwise(lengths))
    expected = prepare_refit(model, layers, [(x,) for x in part.split(lengths)])
    check_same_targets(found, expected)
    check_same_targets(thinned(found, 2), prepare_refit(
        model, layers, [(x,) for x in part[::2].split([len(b[0]) for b in thinned(found, 2).inputs])]
    ))  # fmt: skip


class Resting(Sequence):
    """Batches that note which of them was asked for."""

    def __init__(self, batches):
        self.batches, self.asked = batches, []

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, place):
        self.asked.append(place)
        return self.batches[place]


def test_batches_are_fetched_one_at_a_time_when_they_are_needed():
    """They may rest on the CPU, and all of them would not fit on the device."""
    model = settled(network(Block(), PreActivation()))
    batches = Resting([(x,) for x in X[:24].split(8)])
    refit = prepare_refit(model, consumers_of(model), batches)
    assert refit.inputs is batches
    half = thinned(refit, 2)
    batches.asked.clear()
    assert torch.equal(half.inputs[0][0], X[:16:2])
    assert batches.asked == [0, 1], "two halves are one"
    assert torch.equal(half.inputs[1][0], X[16:24:2])
    assert len(half.inputs) == 2


def test_half_of_several_arguments_and_of_what_is_no_tensor():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x, more, mode):
            return self.conv(x * more["scale"].view(-1, 1, 1, 1)) * mode

    model, scale = Two().double().eval(), torch.linspace(1, 2, 40, dtype=torch.float64)
    found = thinned(prepare_refit(model, ["conv"], [(X, {"scale": scale}, 3)]), 2)
    ((images, more, mode),) = found.inputs
    assert torch.equal(images, X[::2])
    assert torch.equal(more["scale"], scale[::2])
    assert mode == 3
    check_same_targets(found, prepare_refit(model, ["conv"], [(X[::2], {"scale": scale[::2]}, 3)]))
