"""A depth that was tried is the network that a cut would make, measured from outside."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers.captured import IMAGES, captured
from helpers.fits import conv_net, hooks, noisy_images, same_state, snapshot
from torch import nn
from torchmetrics.functional import accuracy

from acsp_lightning import Complexity, measure_complexity
from acsp_lightning.functional import ChannelSelection, SelectionConfig, select_channels
from acsp_lightning.selection.trials import HeldBack, Timing, Trials
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.pruning import Recovery, prune
from acsp_lightning.structure.refit import prepare_refit

FRESH, LABELS = noisy_images(150, seed=7).tensors
SAVED = (0.8, 0.5, 0.25)


@pytest.fixture(autouse=True)
def _all_positions(every_position: None) -> None:
    """Positions drawn at random would depend on the number of samples."""


def trained() -> nn.Sequential:
    net = conv_net().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    images, labels = noisy_images(96, seed=1).tensors
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval()


def chosen(groups: Any, share: float) -> dict[str, ChannelSelection]:
    points = torch.rand(10, 3, generator=torch.Generator().manual_seed(0))
    return {
        group.name: select_channels(
            torch.cdist(p := points[: group.width], p), SelectionConfig(keep=share)
        )
        for group in groups
    }


def recovery_of(net: nn.Module, activations: Any, groups: Any, kind: str) -> Recovery:
    consumers = dict.fromkeys(side.layer for group in groups for side in group.consumers)
    refit = prepare_refit(net, consumers, [(IMAGES,)]) if kind == "least_squares" else None
    moments = None if kind == "none" else activations.input_moments
    return Recovery((IMAGES[:2],), moments, refit, refit is not None)


def trials_of(
    net: nn.Module, kind: str = "least_squares", sizes: tuple[int, ...] = (), held: Any = FRESH
) -> tuple[Trials, tuple[Any, ...], Recovery, Complexity]:
    found, activations = captured(net)
    groups, before = tuple(found.values()), measure_complexity(net, IMAGES[:1])
    recovery = recovery_of(net, activations, groups, kind)
    timing = Timing((IMAGES[:1],), sizes)
    back = HeldBack([(held,)], LABELS)
    return Trials(net, groups, before, recovery, back, None, timing), groups, recovery, before


def flops(model: nn.Module) -> int:
    counter = FlopCountAnalysis(model.eval(), torch.zeros(1, 1, 6, 6))
    return int(counter.unsupported_ops_warnings(False).total())


def right(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(FRESH).argmax(1)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["least_squares", "fold", "none"])
@pytest.mark.parametrize("share", SAVED)
def test_a_depth_is_the_network_that_a_cut_makes(
    share: float, kind: str, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many samples, with a refit to every third one."""
    few = len(IMAGES) // (3 if many else 1)
    monkeypatch.setattr("acsp_lightning.selection.trials.FEW_SAMPLES", few)
    net = trained()
    trials, groups, recovery, _ = trials_of(net, kind)
    selections = chosen(groups, share)
    found = trials.measure(selections)

    cut = copy.deepcopy(net)
    plan = build_plan(groups, {name: s.kept.tolist() for name, s in selections.items()})
    refit = recovery.refit
    if refit is not None and many:  # prepared anew
        refit = prepare_refit(net, refit.targets, [(IMAGES[::3],)])
    prune(cut, plan, None, groups=groups, input_moments=recovery.input_moments, refit=refit)
    assert found.flops == flops(cut) < flops(net)
    assert found.parameters == sum(p.numel() for p in cut.parameters())
    assert found.widths == {name: len(getattr(cut, name).weight) for name in selections}
    before, after = right(net), right(cut)
    assert found.fidelity.samples == 150
    told = {"task": "multiclass", "num_classes": 3}
    assert found.fidelity.accuracy == pytest.approx(float(accuracy(after, LABELS, **told)))
    assert found.fidelity.drop.mean == pytest.approx(
        float(accuracy(before, LABELS, **told) - accuracy(after, LABELS, **told))
    )
    assert found.fidelity.agreement.mean == pytest.approx(float((before == after).double().mean()))
    assert found.speedups == {}


def test_a_recovered_depth_is_closer_than_one_that_is_not() -> None:
    net, errors = trained(), {}
    for kind in ("none", "fold", "least_squares"):
        trials, groups, _, _ = trials_of(net, kind)
        errors[kind] = trials.measure(chosen(groups, 0.5)).fidelity.score_error.mean
    assert errors["least_squares"] < errors["fold"] < errors["none"]


def test_the_network_stays_as_it_is() -> None:
    net = trained()
    state, seed, parameters = snapshot(net), torch.get_rng_state(), [id(p) for p in net.parameters()]
    trials, groups, recovery, _ = trials_of(net)
    net.train()
    net.bn1.eval()
    modes = [module.training for module in net.modules()]
    kept = copy.deepcopy(recovery.refit)
    depths = [trials.measure(chosen(groups, share)) for share in SAVED]
    assert same_state(snapshot(net), state)
    assert [id(p) for p in net.parameters()] == parameters
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), seed)
    assert hooks(net) == 0
    # Nor do trials disturb each other, or what the cut itself recovers with.
    assert [trials.measure(chosen(groups, share)) for share in SAVED] == depths
    assert kept is not None
    assert recovery.refit is not None
    for layer, target in recovery.refit.targets.items():
        for part, other in zip(target.parts, kept.targets[layer].parts, strict=True):
            assert torch.equal(part.outputs, other.outputs)


def test_the_uncut_network_loses_nothing() -> None:
    net = trained()
    trials, groups, _, before = trials_of(net)
    uncut = trials.uncut
    assert (uncut.flops, uncut.parameters) == (before.flops, before.parameters)
    assert uncut.flops == flops(net)
    assert uncut.widths == {"conv1": 8, "conv2": 6, "fc1": 10}
    assert uncut.fidelity.accuracy == float((right(net) == LABELS).double().mean())
    assert uncut.fidelity.drop.mean == uncut.fidelity.drop.error == 0
    assert uncut.fidelity.agreement.mean == 1
    assert uncut.fidelity.score_error.mean == 0
    whole = trials.measure(chosen(groups, 1.0))
    assert (whole.flops, whole.widths) == (uncut.flops, uncut.widths)
    assert whole.fidelity.score_error.mean < 1e-8


def test_a_cut_of_some_groups_leaves_the_others_whole() -> None:
    net = trained()
    trials, groups, _, _ = trials_of(net, "none")
    found = trials.measure(chosen(groups[:1], 0.5))
    cut = copy.deepcopy(net)
    kept = chosen(groups[:1], 0.5)["conv1"].kept.tolist()
    prune(cut, build_plan(groups[:1], {"conv1": kept}), None, groups=groups[:1])
    assert found.flops == flops(cut)
    assert found.fidelity.accuracy == float((right(cut) == LABELS).double().mean())


def test_parameters_that_forward_does_not_use_are_not_counted() -> None:
    """As in the complexity of the network before, or the shares would not be shares of it."""

    class Idle(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for name, module in self.named_children():
                x = x if name == "spare" else module(x)
            return x

    net = Idle(OrderedDict(trained()._modules) | {"spare": nn.Linear(100, 100)}).eval()
    trials, groups, _, before = trials_of(net, "none")
    assert before.unused == {"spare": 10_100}
    cut = copy.deepcopy(net)
    selections = chosen(groups, 0.5)
    prune(
        cut, build_plan(groups, {n: s.kept.tolist() for n, s in selections.items()}), None, groups=groups
    )
    assert trials.measure(selections).parameters == measure_complexity(cut, IMAGES[:1]).parameters


def test_speed_is_measured_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Found:
        speedup = 1.5

    def compare(before: Any, after: Any, inputs: Any, sizes: Any) -> list[Any]:
        seen.append((flops(before), flops(after)))
        return [Found()] * len(sizes)

    monkeypatch.setattr("acsp_lightning.selection.trials.compare_latency", compare)
    net = trained()
    trials, groups, _, _ = trials_of(net, "none", (1, 32))
    depth = trials.measure(chosen(groups, 0.5))
    assert trials.uncut.speedups == {"1": 1.0, "32": 1.0}
    assert depth.speedups == {"1": 1.5, "32": 1.5}
    assert seen == [(flops(net), depth.flops)]


def test_no_class_scores_are_refused() -> None:
    class Silent(nn.Sequential):
        def forward(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
            return {"hidden": super().forward(x)}

    net = conv_net().eval()
    found, activations = captured(net)
    recovery = recovery_of(net, activations, tuple(found.values()), "none")
    with pytest.raises(ValueError, match=r"no class scores for the samples held back.*read_outputs="):
        Trials(
            Silent(*net), tuple(found.values()), measure_complexity(net, IMAGES[:1]), recovery,
            HeldBack([(FRESH,)], LABELS), None, Timing((IMAGES[:1],), ()),
        )  # fmt: skip
