"""Plots of the curves that decide, read off their own axes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.records import selection, step, trade_off, traded, viewed
from matplotlib.figure import Figure

from acsp_lightning import PruningStep, SelectionConfig
from acsp_lightning.functional import (
    ChannelSelection,
    WidthReason,
    select_channels,
)
from acsp_lightning.report.figures import (
    BY_CURVE,
    step_figures,
)
from acsp_lightning.selection.path import NetworkCurve

LONG = [f"backbone.{'block.' * 20}conv{place}" for place in range(60)]


def figures(of: PruningStep) -> dict[str, Figure]:
    return dict(step_figures(of))


def selected(points: torch.Tensor, config: SelectionConfig) -> ChannelSelection:
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return select_channels(distances, config)


def test_the_curve_of_the_network() -> None:
    found = viewed()
    (axes,) = figures(found)["network"].axes
    line, chosen, knee = axes.lines
    assert found.network is not None
    np.testing.assert_allclose(line.get_xdata(), np.array(found.network.flops) / found.network.flops[0])
    np.testing.assert_allclose(line.get_ydata(), np.sqrt(np.array(found.network.damage) / 0.5))
    assert chosen.get_xdata()[0] == found.after.flops / found.before.flops
    assert knee.get_xdata() == [40 / 60]


def test_the_measured_trade_off() -> None:
    found = traded()
    (axes,) = figures(found)["trade_off"].axes
    assert found.trade_off is not None
    depths = found.trade_off.depths
    shares = [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6]
    (bars,) = axes.containers
    line, caps, (errors,) = bars
    np.testing.assert_allclose(line.get_xdata(orig=False), shares)
    np.testing.assert_allclose(line.get_ydata(orig=False), [0.75, 0.749, 0.7375, 0.55, 0.25])
    for segment, depth in zip(errors.get_segments(), depths, strict=True):
        low, high = sorted(segment[:, 1])
        error = depth.fidelity.drop.error
        np.testing.assert_allclose(
            (low, high), (depth.fidelity.accuracy - error, depth.fidelity.accuracy + error)
        )
    agreement, chosen, *dots = [one for one in axes.lines if one is not line and one not in caps]
    np.testing.assert_allclose(agreement.get_xdata(), shares)
    np.testing.assert_allclose(agreement.get_ydata(), [1, 0.998, 0.975, 0.6, 0])
    assert chosen.get_xdata()[0] == found.after.flops / found.before.flops
    assert {float(dot.get_xdata()[0]): float(dot.get_ydata()[0]) for dot in dots} == {
        5 / 6: 0.749, 4 / 6: 0.7375, 3 / 6: 0.55
    }  # fmt: skip
    texts = {text.get_text(): text.xy[0] for text in axes.texts}
    assert texts == {"flops=0.9": 5 / 6, "knee, tolerance": 4 / 6, "flops=0.5": 3 / 6}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("FLOPs kept", "top-1 accuracy")


def test_a_trade_off_without_marks_has_none() -> None:
    bare = replace(trade_off(), knee=None, tolerated=None, targets={})
    (axes,) = figures(replace(traded(), trade_off=bare))["trade_off"].axes
    assert not axes.texts
    assert not [line for line in axes.lines if line.get_marker() == "o"]


@pytest.mark.parametrize("measured", [False, True])
def test_a_trade_off_is_drawn_where_it_was_measured_and_first(measured: bool) -> None:
    names = list(figures(traded() if measured else viewed()))
    assert ("trade_off" in names) is measured
    assert names[0] == ("trade_off" if measured else "network")


def test_a_network_without_knee_or_damage() -> None:
    flat = NetworkCurve((60.0, 40.0), (0.0, 0.0), None)
    (axes,) = figures(replace(viewed(), network=flat))["network"].axes
    line, _ = axes.lines
    assert list(line.get_ydata()) == [0, 0]


def test_the_curves_of_a_layer() -> None:
    chosen = replace(selection(), reason=WidthReason.LEVEL)
    axes, *empty = figures(replace(step(), selections={"conv": chosen}))["curves"].axes
    coverage, kept = axes.lines
    assert list(coverage.get_xdata()) == chosen.ks.tolist()
    assert list(coverage.get_ydata()) == chosen.coverage.tolist()
    assert coverage.get_label() == "coverage"
    assert kept.get_xdata()[0] == chosen.k == 3
    assert axes.get_title("left").startswith("conv\n3 of 6: one level of all curves")
    assert not any(axes.axison for axes in empty)


def test_the_knee_of_a_layer_is_marked() -> None:
    points = torch.cat([torch.randn(4, 3).repeat(6, 1), torch.randn(2, 3)])
    chosen = selected(points, SelectionConfig(curve="mss"))
    assert chosen.knee is not None
    axes, *_ = figures(replace(step(), selections={"conv": chosen}))["curves"].axes
    silhouette, _, knee = axes.lines
    assert list(silhouette.get_ydata()) == chosen.mss.tolist()
    assert list(knee.get_xdata()) == [chosen.knee]
    assert list(knee.get_ydata()) == [float(chosen.mss[chosen.ks.tolist().index(chosen.knee)])]


def test_titles_of_many_curves_do_not_overlap() -> None:
    wordy = replace(selection(), reason=max(BY_CURVE, key=len))
    figure = figures(replace(step(), selections=dict.fromkeys(LONG[:7], wordy)))["curves"]
    figure.draw_without_rendering()
    used = [axes for axes in figure.axes if axes.axison]
    assert len(used) == 7
    boxes = [axes.get_tightbbox() for axes in used]
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            assert not one.overlaps(other)
