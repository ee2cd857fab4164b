"""How many channels stay, and which: through the callback, measured from outside."""

from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers.fits import (
    ALL_HALVED,
    CLASSES,
    WIDTHS,
    Classifier,
    Fit,
    Probe,
    callback,
    conv_net,
    halved,
    noisy_images,
    train_loader,
    widths,
)
from torch import Tensor, nn

from acsp_lightning import ACSPPruningCallback, SelectionConfig
from acsp_lightning.functional import WidthReason

DAMAGE = SelectionConfig(curve="damage")


def flops(module: nn.Module) -> int:
    counter = FlopCountAnalysis(module.eval(), torch.zeros(1, 1, 6, 6))
    return int(counter.unsupported_ops_warnings(False).total())


def wide_net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


def whole_and_cut(probe: Probe, module: Classifier, net: nn.Module) -> tuple[Classifier, Classifier]:
    """The network just before and just after the cut after epoch 0, in eval mode."""
    before = Classifier(net)
    before.load_state_dict(probe.states["validation_end", 0])
    module.load_state_dict(probe.states["train_epoch_start", 1])
    return before.eval(), module.eval()


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75])
def test_keep(fit: Fit, keep: float) -> None:
    module = Classifier(wide_net())
    fit(module, [callback(selection=SelectionConfig(keep=keep))])
    assert list(widths(module).values()) == [24 * keep, 32 * keep, 24 * keep, CLASSES]


@pytest.mark.parametrize("target", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("curve", ["coverage", "mss"])
def test_flops(fit: Fit, target: float, curve: str) -> None:
    module = Classifier(wide_net())
    pruning = callback(selection=SelectionConfig(flops=target, curve=curve))
    whole = flops(Classifier(wide_net()))
    fit(module, [pruning])
    share = flops(module) / whole
    assert share <= target
    if curve == "coverage":  # the mss curve jumps, so that one level more may be far too much
        assert share >= 0.8 * target
    (step,) = pruning.steps
    assert step.after.flops == flops(module)

    # One level: what every layer's curve reaches lies above what no layer needed to reach.
    reached, missed = [], []
    for selection in step.selections.values():
        assert selection.reason is WidthReason.LEVEL
        values = dict(zip(selection.ks.tolist(), selection.curve.tolist(), strict=True))
        reached += [values[selection.k]] if selection.k in values else []
        missed += [value for k, value in values.items() if k < selection.k]
    assert max(missed) < min(reached)


def test_flops_is_a_share_of_the_first_network(fit: Fit) -> None:
    module = Classifier(wide_net())
    whole = flops(Classifier(wide_net()))
    pruning = callback(0, 1, selection=SelectionConfig(flops=0.5))
    fit(module, [pruning])
    assert 0.4 <= flops(module) / whole <= 0.5
    assert pruning.steps[1].before.flops == pruning.steps[1].after.flops


def test_flops_layer_by_layer_meets_the_target_at_the_end(fit: Fit) -> None:
    module = Classifier(wide_net())
    whole = flops(Classifier(wide_net()))
    pruning = callback(0, 1, 2, layers_per_epoch=1, selection=SelectionConfig(flops=0.5))
    fit(module, [pruning], max_epochs=5)
    assert [len(step.layers) for step in pruning.steps] == [1, 1, 1]
    assert 0.35 <= flops(module) / whole <= 0.5


def test_flops_of_one_keeps_everything(fit: Fit) -> None:
    module = Classifier()
    fit(module, [callback(selection=SelectionConfig(flops=1.0))])
    assert widths(module) == WIDTHS


@pytest.mark.parametrize(("keep", "expected"), [(0.3, [8, 12, 8]), (0.99, [24, 32, 24])])
def test_round_to_raises_to_multiples(fit: Fit, keep: float, expected: list[int]) -> None:
    module = Classifier(wide_net())
    fit(module, [callback(round_to=4, selection=SelectionConfig(keep=keep))])
    assert list(widths(module).values())[:3] == expected


def test_round_to_holds_under_a_flops_target(fit: Fit) -> None:
    module = Classifier(wide_net())
    fit(module, [callback(round_to=4, selection=SelectionConfig(flops=0.5))])
    assert all(width % 4 == 0 for width in list(widths(module).values())[:3])


def test_min_channels(fit: Fit) -> None:
    module = Classifier()
    fit(module, [callback(selection=SelectionConfig(keep=0.01, min_channels=7))])
    assert widths(module) == {"net.conv1": 7, "net.conv2": 6, "net.fc1": 7, "net.fc2": CLASSES}


def test_l1_keeps_the_largest_filters(fit: Fit) -> None:
    module, probe = Classifier(), Probe()
    pruning = callback(selection=SelectionConfig(keep=0.5, criterion="l1"))
    fit(module, [pruning, probe])
    state = probe.states["validation_end", 0]
    for name in ("net.conv1", "net.conv2", "net.fc1"):
        norms = state[f"{name}.weight"].abs().flatten(1).sum(1)
        largest = norms.topk(len(norms) // 2).indices.sort().values
        assert torch.equal(pruning.steps[0].selections[name].kept, largest)


def test_random_is_decided_by_its_seed(fit: Fit) -> None:
    def kept(seed: int) -> list[list[int]]:
        pruning = callback(selection=SelectionConfig(keep=0.5, criterion="random", seed=seed))
        fit(Classifier(wide_net()), [pruning])
        return [s.kept.tolist() for s in pruning.steps[0].selections.values()]

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


def test_mean_jm_keeps_channels_that_separate(fit: Fit) -> None:
    """Channels that say nothing about the class go first."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        net[1].weight[::2] = 0
    module = Classifier(net, lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    pruning = callback(selection=SelectionConfig(keep=0.5, criterion="mean_jm"))
    fit(module, [pruning])
    assert pruning.steps[0].selections["net.1"].kept.tolist() == [1, 3, 5, 7]


def test_duplicates_go_and_cost_nothing(fit: Fit) -> None:
    """Eight channels of which four are copies: the knee finds four, and outputs stay as they were."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        net[1].weight[4:] = net[1].weight[:4]
        net[1].bias[4:] = net[1].bias[:4]
    module = Classifier(net, lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    images = noisy_images(18, seed=2).tensors[0]
    expected = net(images).detach()
    pruning = callback(selection=SelectionConfig(keep=0.5))
    fit(module, [pruning])
    assert sorted(k % 4 for k in pruning.steps[0].selections["net.1"].kept.tolist()) == [0, 1, 2, 3]
    assert torch.allclose(module(images), expected, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The curve of .* has no knee")
def test_a_curve_of_every_layer_finds_knees(fit: Fit) -> None:
    module = Classifier(wide_net())
    pruning = ACSPPruningCallback([0], selection=SelectionConfig(curve="coverage"))
    fit(module, [pruning])
    reasons = {s.reason for s in pruning.steps[0].selections.values()}
    assert WidthReason.KNEE in reasons
    assert reasons <= {WidthReason.KNEE, WidthReason.NO_KNEE}
    assert pruning.steps[0].network is None
    assert sum(widths(module).values()) < sum(widths(Classifier(wide_net())).values())


def test_the_knee_of_the_damage_to_the_network(fit: Fit) -> None:
    module = Classifier(wide_net())
    pruning = ACSPPruningCallback([0], selection=DAMAGE)
    fit(module, [pruning])
    reasons = {s.reason for s in pruning.steps[0].selections.values()}
    assert reasons == {WidthReason.NETWORK_KNEE}
    assert sum(widths(module).values()) < sum(widths(Classifier(wide_net())).values())


@pytest.mark.filterwarnings("ignore:The curve of .* has no knee")
def test_the_paper_preset(fit: Fit) -> None:
    module = Classifier(wide_net())
    pruning = ACSPPruningCallback([0], selection=SelectionConfig.paper(), recovery="none")
    fit(module, [pruning])
    (step,) = pruning.steps
    assert all(selection.decided_by == "mss" for selection in step.selections.values())
    assert all((selection.weights == 1).all() for selection in step.selections.values())
    # The knee of a parabola fitted to a monotone curve lies near the middle, whatever the data.
    assert step.after.flops < step.before.flops


def test_a_layer_without_a_knee_stays_whole_and_is_named(fit: Fit) -> None:
    """A straight curve: channels that are all equally far from each other."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.ReLU(), nn.Linear(3, CLASSES))
    module = Classifier(net)
    by_layer = ACSPPruningCallback([0], selection=SelectionConfig(curve="coverage"))
    with pytest.warns(UserWarning, match=r"The curve of net\.1 has no knee; .* selection\.keep"):
        fit(module, [by_layer])
    assert widths(module)["net.1"] == 3


def test_a_network_without_a_knee_stays_whole_and_is_told(fit: Fit) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.ReLU(), nn.Linear(3, CLASSES))
    module, pruning = Classifier(net), ACSPPruningCallback([0], selection=DAMAGE)
    with pytest.warns(
        UserWarning, match=r"The network's damage over its FLOPs has no knee .*selection\.keep"
    ):
        fit(module, [pruning])
    assert widths(module)["net.1"] == 3
    assert {s.reason for s in pruning.steps[0].selections.values()} == {WidthReason.NO_NETWORK_KNEE}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["*conv*"]}, halved("conv1", "conv2")),
        ({"include": ["net.conv2", "net.fc?"]}, halved("conv2", "fc1")),
        ({"exclude": ["net.conv?"]}, halved("fc1")),
        ({"include": ["*conv*"], "exclude": ["*conv1"]}, halved("conv2")),
        ({}, ALL_HALVED),
    ],
)
def test_include_and_exclude(fit: Fit, options: dict[str, Any], expected: dict[str, int]) -> None:
    module = Classifier()
    fit(module, [callback(**options)])
    assert widths(module) == expected


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize("residual", [False, True])
def test_residual_groups(fit: Fit, residual: bool) -> None:
    module, pruning = Classifier(Residual()), callback(residual=residual)
    fit(module, [pruning])
    (step,) = pruning.steps
    stream = 4 if residual else 8
    assert widths(module) == {
        "net.stem": stream,
        "net.inner": 3,
        "net.outer": stream,
        "net.head": CLASSES,
    }
    if residual:
        assert step.plan.kept("net.stem", "out") == step.plan.kept("net.outer", "out")
        assert step.layers["net.outer"] == (8, 4)


def test_without_recovery_weights_are_sliced_and_nothing_else(fit: Fit) -> None:
    module, probe, pruning = Classifier(), Probe(), callback(recovery="none")
    fit(module, [pruning, probe])
    before, after = probe.states["validation_end", 0], probe.states["train_epoch_start", 1]
    kept = {name: s.kept for name, s in pruning.steps[0].selections.items()}
    c1, c2, f1 = kept["net.conv1"], kept["net.conv2"], kept["net.fc1"]
    flat = (c2[:, None] * 9 + torch.arange(9)).flatten()
    expected = {
        "net.conv1.weight": before["net.conv1.weight"][c1],
        "net.conv2.weight": before["net.conv2.weight"][c2][:, c1],
        "net.fc1.weight": before["net.fc1.weight"][f1][:, flat],
        "net.fc1.bias": before["net.fc1.bias"][f1],
        "net.fc2.weight": before["net.fc2.weight"][:, f1],
        "net.fc2.bias": before["net.fc2.bias"],
    }
    for layer, index in (("net.bn1", c1), ("net.bn2", c2)):
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{layer}.{name}"] = before[f"{layer}.{name}"][index]
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor), name


def test_least_squares_brings_outputs_nearer_to_the_whole_network(fit: Fit) -> None:
    def error(recovery: str) -> float:
        module, probe = Classifier(), Probe()
        fit(module, [callback(recovery=recovery), probe])
        whole, cut = whole_and_cut(probe, module, conv_net())
        images = noisy_images(18, seed=2).tensors[0]
        return (whole(images) - cut(images)).square().mean().item()

    assert error("least_squares") < 0.7 * error("none")


def test_least_squares_is_the_solution_of_lstsq(fit: Fit) -> None:
    """The classifier's new weights against numpy's least squares on the saved inputs of it."""
    module, probe, pruning = Classifier(), Probe(), callback(include=["net.fc1"])
    fit(module, [pruning, probe])
    whole, cut = whole_and_cut(probe, module, conv_net())
    inputs: list[Tensor] = []
    whole.net.fc2.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    expected = whole(noisy_images(18, seed=2).tensors[0]) - whole.net.fc2.bias
    kept = inputs[0][:, pruning.steps[0].selections["net.fc1"].kept].double()
    best = torch.linalg.lstsq(kept, expected.double()).solution
    found = cut.net.fc2.weight.T.double()
    error = (kept @ found - expected).square().sum().item()
    assert error == pytest.approx((kept @ best - expected).square().sum().item(), rel=1e-2)


@pytest.mark.parametrize("recovery", ["least_squares", "fold"])
def test_batchnorm_statistics_after_the_cut_are_those_of_training_batches(
    fit: Fit, recovery: str
) -> None:
    module, probe = Classifier(), Probe()
    train = train_loader(shuffle=False)
    fit(module, [callback(batchnorm_batches=3, recovery=recovery), probe], train=train)
    _, cut = whole_and_cut(probe, module, conv_net())
    outputs = [cut.net.conv1(images).movedim(1, 0).flatten(1) for images, _ in list(train)[:3]]
    if recovery == "least_squares":  # of all batches together, with scales that make up for it
        mean, variance = torch.cat(outputs, 1).mean(1), torch.cat(outputs, 1).var(1, correction=0)
        assert not torch.equal(cut.net.bn1.weight, torch.ones_like(cut.net.bn1.weight))
    else:
        mean = torch.stack([values.mean(1) for values in outputs]).mean(0)
        variance = torch.stack([values.var(1) for values in outputs]).mean(0)
    assert torch.allclose(cut.net.bn1.running_mean, mean, atol=1e-6)
    assert torch.allclose(cut.net.bn1.running_var, variance, atol=1e-5)


def test_more_recalibration_batches_than_an_epoch_has(fit: Fit) -> None:
    module, pruning = Classifier(), callback(batchnorm_batches=50)
    fit(module, [pruning])
    assert len(pruning.steps) == 1
    assert module.net.bn1.momentum == 0.1
    assert module.steps == 12
