"""What is known of groups before widths are chosen: as the steps find it one by one, in any process."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.captured import captured
from helpers.fits import conv_net

from acsp_lightning import SelectionConfig
from acsp_lightning.functional import WidthDecision, WidthReason, trace_curves
from acsp_lightning.selection import weighing
from acsp_lightning.selection.damage import OutputSize, candidate_widths, damage_curve
from acsp_lightning.selection.scores import score_channels
from acsp_lightning.selection.weighing import announce_wait, weigh_groups

SIZES = {"conv2": OutputSize(torch.linspace(0.5, 2, 6), 3.0)}


@pytest.mark.parametrize("weighting", ["contribution", "none"])
def test_each_group_is_compared_clustered_and_weighed(weighting: Any) -> None:
    model = conv_net()
    groups, activations = captured(model)
    config = SelectionConfig(curve="damage", weighting=weighting)
    found = weigh_groups(model, tuple(groups.values()), activations, config, sizes=SIZES, round_to=2)
    assert list(found) == list(groups)
    for name, group in groups.items():
        scores = score_channels(model, group, activations, config)
        ks = candidate_widths(group.width, config.min_channels, group.step(2))
        weights = scores.contributions if weighting == "contribution" else None
        curves = trace_curves(scores.distances, weights, ks)
        assert torch.equal(found[name].scores.distances, scores.distances)
        assert torch.equal(found[name].curves.coverage, curves.coverage)
        assert found[name].damage == damage_curve(model, group, activations, curves, SIZES, ks)


@pytest.mark.parametrize(
    ("config", "decisions", "includes"),
    [
        (SelectionConfig(keep=0.5), None, 4),
        (SelectionConfig(curve="coverage"), None, 5),
        (SelectionConfig(), {"conv1": WidthDecision(7, None, WidthReason.HALVED)}, 7),
    ],
)
def test_where_no_damage_decides_none_is_computed(
    config: SelectionConfig, decisions: Any, includes: int
) -> None:
    model = conv_net()
    groups, activations = captured(model)
    found = weigh_groups(model, (groups["conv1"],), activations, config, decisions=decisions)
    assert found["conv1"].damage is None
    assert includes in found["conv1"].curves.ks


def test_works_go_to_whoever_spreads_them_the_dearest_for_the_widest() -> None:
    model = conv_net()
    groups, activations = captured(model)
    asked: dict[str, Any] = {}

    def nobody(name: str, works: Sequence[Callable[[], Any]], costs: Sequence[float]) -> list[Any]:
        asked.update(works=works, costs=costs)
        return []

    config = SelectionConfig(keep=0.5)
    found = weigh_groups(model, tuple(groups.values()), activations, config, spread=nobody)
    assert found == {}
    assert len(asked["works"]) == len(asked["costs"]) == 3
    # conv1 and conv2 have 36 positions, fc1 has one.
    assert sorted(asked["costs"]) == [asked["costs"][place] for place in (2, 1, 0)]
    widest = asked["works"][0]()
    assert torch.equal(
        widest.scores.distances, score_channels(model, groups["conv1"], activations, config).distances
    )


@pytest.mark.parametrize(("seconds", "told"), [(62.0, 1), (58.0, 0)])
@pytest.mark.parametrize("class_pairs", [None, 100])
def test_a_long_wait_is_announced(
    monkeypatch: pytest.MonkeyPatch, seconds: float, told: int, class_pairs: int | None
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(weighing, "expected_wait", lambda *_: seconds)
    config = SelectionConfig(keep=0.5, class_pairs=class_pairs)
    groups, activations = captured(conv_net())
    announce_wait(groups.values(), activations, config, 2, messages.append)
    assert len(messages) == told
    advice = "fewer" if class_pairs else "only N pairs of classes, drawn at random"
    assert all(f"about 31 s; selection.class_pairs=N compares {advice}" in text for text in messages)
