import math

import pytest
import torch

from acsp_lightning.functional import (
    SelectionConfig,
    WidthReason,
    decide_width,
    select_channels,
    trace_curves,
    width_at_level,
)


def test_no_knee_keeps_everything():
    # All channels equally far apart: MSS is k / N and coverage (k - 1) / (N - 1), straight lines.
    selection = select_channels(1 - torch.eye(20))
    assert selection.knee is None
    assert selection.reason is WidthReason.NO_KNEE
    assert selection.k == 20
    for tensor in (selection.kept, selection.medoids, selection.labels):
        assert tensor.tolist() == list(range(20))


@pytest.mark.parametrize("n", [1, 2])
def test_narrow_layers_stay_whole(n):
    selection = select_channels(1 - torch.eye(n))
    assert selection.kept.tolist() == list(range(n))
    assert selection.reason is WidthReason.TOO_NARROW
    assert len(selection.ks) == len(selection.curve) == 0


@pytest.mark.parametrize(
    ("options", "round_to", "k"),
    [
        ({"keep": 0.5}, 1, 16),
        ({"keep": 0.5}, 12, 24),
        ({"keep": 0.9}, 12, 32),
        ({"keep": 0.01}, 1, 2),
        ({"keep": 0.01, "min_channels": 5}, 1, 5),
        ({"keep": 0.01, "min_channels": 5}, 4, 8),
        ({"keep": 0.01, "min_channels": 50}, 1, 32),
        ({"keep": 1.0}, 32, 32),
    ],
)
def test_a_fixed_share_is_raised_and_rounded_up(distances, options, round_to, k):
    selection = select_channels(distances, SelectionConfig(**options), round_to=round_to)
    assert selection.k == len(selection.kept) == k
    assert selection.knee is None
    assert selection.reason is WidthReason.SHARE


def test_the_knee_stays_on_record_when_it_is_raised(distances):
    knee = select_channels(distances).knee
    decision = decide_width(trace_curves(distances), SelectionConfig(min_channels=20))
    assert (decision.k, decision.knee) == (20, knee)


@pytest.mark.parametrize("curve", ["coverage", "mss"])
@pytest.mark.parametrize("level", [0.2, 0.5, 0.8])
def test_the_level_is_reached_by_no_smaller_k(distances, curve, level):
    curves = trace_curves(distances)
    k = width_at_level(curves, level, SelectionConfig(curve=curve)).k
    values = dict(zip(curves.ks.tolist(), getattr(curves, curve).tolist(), strict=True))
    assert values[k] >= level
    assert all(value < level for other, value in values.items() if other < k)


@pytest.mark.parametrize(
    ("level", "options", "round_to", "k"),
    [(0.0, {}, 1, 2), (0.0, {"min_channels": 6}, 1, 6), (0.0, {}, 8, 8), (1.1, {}, 1, 32)],
)
def test_levels_at_the_ends(distances, level, options, round_to, k):
    curves = trace_curves(distances)
    assert width_at_level(curves, level, SelectionConfig(**options), round_to=round_to).k == k


def test_curves_of_another_layer(distances, distances_of):
    with pytest.raises(ValueError, match="between 32 channels, but the curves are of 8"):
        select_channels(distances, curves=trace_curves(distances_of("noise", 8)))


@pytest.mark.parametrize("level", [math.nan, math.inf])
def test_wrong_levels(distances_of, level):
    with pytest.raises(ValueError, match="must be finite"):
        width_at_level(trace_curves(distances_of("noise", 8)), level, SelectionConfig())
