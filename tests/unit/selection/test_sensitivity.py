"""Damage in units of what it does to the class scores, against cuts that are made by hand."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.captured import captured
from helpers.fits import conv_net, noisy_images, same_state, snapshot
from torch import Tensor, nn

from acsp_lightning import SelectionConfig
from acsp_lightning.capture.statistics import Captured
from acsp_lightning.selection import sensitivity
from acsp_lightning.selection.sensitivity import BOUND, with_sensitivity
from acsp_lightning.selection.weighing import Weighed, weigh_groups
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.refit import Refit, prepare_refit

X = noisy_images(24, seed=1).tensors[0]


def known(model: nn.Module, **config: Any) -> tuple[Captured, Mapping[str, Weighed], Refit]:
    groups, activations = captured(model)
    settings = SelectionConfig(curve="damage", **config)
    weighed = weigh_groups(model, tuple(groups.values()), activations, settings)
    consumers = [side.layer for group in groups.values() for side in group.consumers]
    return (
        Captured(None, tuple(groups.values()), activations),
        weighed,
        prepare_refit(model, consumers, [(X[:10],), (X[10:],)]),
    )


def at_half(one: Weighed) -> tuple[int, float]:
    *ks, whole = one.damage.ks
    k = min(ks, key=lambda k: abs(k - whole / 2))
    return k, one.damage.damage[one.damage.ks.index(k)]


def centred(scores: Tensor) -> Tensor:
    return (scores - scores.mean(1, keepdim=True)).double()


def test_the_damage_at_half_is_the_change_that_a_cut_of_the_group_makes() -> None:
    torch.manual_seed(0)
    model = conv_net().eval()
    before = snapshot(model)
    found, weighed, refit = known(model)
    scaled = with_sensitivity(model, found, weighed, refit, None)
    assert same_state(snapshot(model), before)
    with torch.no_grad():
        uncut = centred(model(X))
    for group in found.groups:
        one, other = weighed[group.name], scaled[group.name]
        k, _ = at_half(one)
        kept = one.curves.sweep.medoids[one.curves.ks.tolist().index(k)].tolist()
        smaller = copy.deepcopy(model)
        moments = found.activations.input_moments
        prune(
            smaller, build_plan([group], {group.name: kept}), None, groups=[group], input_moments=moments
        )
        with torch.no_grad():
            change = centred(smaller(X)) - uncut
        expected = float(change.square().sum() / uncut.square().sum())
        assert at_half(other)[1] == pytest.approx(expected, rel=1e-5)
        # One factor for the whole curve, and nothing else is another.
        factor = expected / at_half(one)[1]
        assert other.damage.damage == pytest.approx([factor * d for d in one.damage.damage], rel=1e-5)
        assert replace(other, damage=one.damage) == one


def test_what_the_scores_hardly_feel_counts_less_but_within_bounds() -> None:
    class Branches(nn.Module):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(1, 8, 3, stride=2) for _ in range(3))
            self.mixes = nn.ModuleList(nn.Conv2d(8, 3, 2) for _ in range(3))
            self.share = share

        def forward(self, x: Tensor) -> Tensor:
            one, two, three = (
                mix(conv(x).relu()).mean((2, 3))
                for conv, mix in zip(self.convs, self.mixes, strict=True)
            )
            return one + two + self.share * three

    factors = {}
    for share in (1.0, 0.5, 1e-4):
        torch.manual_seed(0)
        model = Branches(share).eval()
        found, weighed, refit = known(model)
        scaled = with_sensitivity(model, found, weighed, refit, None)
        factors[share] = {name: at_half(scaled[name])[1] / at_half(weighed[name])[1] for name in scaled}
    names = list(factors[1.0])
    shares = {share: found[names[2]] / found[names[0]] for share, found in factors.items()}
    assert shares[0.5] == pytest.approx(shares[1.0] / 4, rel=1e-3)
    assert factors[1e-4][names[2]] == pytest.approx(sorted(factors[1e-4].values())[1] / BOUND)


@pytest.mark.parametrize("read_outputs", [None, lambda outputs: outputs["scores"]])
def test_outputs_without_class_scores_change_nothing(read_outputs: Any) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = conv_net()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": self.net(x)}

    model = Named().eval()
    found, weighed, refit = known(model)
    scaled = with_sensitivity(model, found, weighed, refit, read_outputs)
    assert (scaled == weighed) is (read_outputs is None)


def test_without_samples_or_damage_nothing_is_measured() -> None:
    model = conv_net().eval()
    found, weighed, refit = known(model)
    assert with_sensitivity(model, found, weighed, None, None) is weighed
    undecided = {name: replace(one, damage=None) for name, one in weighed.items()}
    assert with_sensitivity(model, found, undecided, refit, None) is undecided


@pytest.mark.parametrize(("passes", "taken"), [(2000, 24), (24, 8), (36, 12)])
def test_networks_of_many_groups_are_measured_on_fewer_samples(
    monkeypatch: pytest.MonkeyPatch, passes: int, taken: int
) -> None:
    monkeypatch.setattr(sensitivity, "PASSES", passes)
    model = conv_net().eval()
    found, weighed, refit = known(model)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    with_sensitivity(model, found, weighed, refit, None)
    # Evenly spaced over the batches: a loader may give one class after the other.
    assert torch.equal(torch.cat(seen[:2]), X[:: 24 // taken])


class Repeated(nn.Module):
    """Channels of which each has twins, so that losing half of them does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 6, 2)
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[:3].repeat(4, 1, 1, 1))
            self.conv.bias.copy_(self.conv.bias[:3].repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.conv(x).relu()).relu().mean((2, 3)))


def test_channels_that_others_repeat_are_measured_where_they_are_missed() -> None:
    torch.manual_seed(0)
    model = Repeated().eval()
    found, weighed, refit = known(model)
    one = weighed["conv"].damage
    assert one.damage[one.ks.index(6)] < 1e-4, "half of the channels are not missed"
    scaled = with_sensitivity(model, found, weighed, refit, None)
    k = max(k for k, damage in zip(one.ks, one.damage, strict=True) if damage >= 1e-3)
    assert k <= 3
    group = next(group for group in found.groups if group.name == "conv")
    kept = weighed["conv"].curves.sweep.medoids[weighed["conv"].curves.ks.tolist().index(k)].tolist()
    smaller = copy.deepcopy(model)
    moments = found.activations.input_moments
    prune(smaller, build_plan([group], {"conv": kept}), None, groups=[group], input_moments=moments)
    with torch.no_grad():
        uncut = centred(model(X))
        change = centred(smaller(X)) - uncut
    expected = float(change.square().sum() / uncut.square().sum())
    other = scaled["conv"].damage
    assert other.damage[other.ks.index(k)] == pytest.approx(expected, rel=1e-3)
