import math

import pytest
import torch

from acsp_lightning.functional import (
    SelectionConfig,
    WidthReason,
    decide_width,
    find_knee,
    select_channels,
    sweep_k_medoids,
    trace_curves,
    width_at_level,
)


@pytest.fixture(scope="module")
def distances(distances_of):
    return distances_of("clustered", 32)


@pytest.fixture(scope="module")
def magnitudes():
    return torch.rand(32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("curve", ["coverage", "mss"])
def test_the_default_keeps_the_medoids_at_the_knee(distances, curve):
    selection = select_channels(distances, SelectionConfig(curve=curve))
    assert selection.knee == find_knee(selection.ks, getattr(selection, curve))
    assert selection.k == selection.knee
    assert selection.reason is WidthReason.KNEE
    assert torch.equal(selection.curve, getattr(selection, curve))
    assert selection.width == 32
    assert torch.equal(selection.kept, selection.medoids)
    assert selection.kept.tolist() == sorted(set(selection.kept.tolist()))
    assert torch.equal(selection.weights, torch.ones(32, dtype=torch.float64))


def test_weights_reach_the_clustering_only_where_they_are_asked_for(distances):
    weights = torch.ones(32)
    weights[7] = 1000.0
    weighted = select_channels(distances, SelectionConfig(keep=0.1), weights=weights)
    plain = select_channels(distances, SelectionConfig(keep=0.1, weighting="none"), weights=weights)
    assert 7 in weighted.medoids
    assert torch.equal(weighted.weights, weights.double())
    assert torch.equal(plain.weights, torch.ones(32, dtype=torch.float64))
    assert torch.equal(plain.medoids, sweep_k_medoids(distances).medoids[1])


def test_paper_keeps_the_largest_filter_of_each_cluster(distances, magnitudes):
    selection = select_channels(distances, SelectionConfig.paper(), magnitudes=magnitudes)
    assert selection.decided_by == "mss"
    largest = set()
    for cluster in range(selection.k):
        members = [i for i in range(32) if selection.labels[i] == cluster]
        largest.add(max(members, key=lambda i: magnitudes[i].item()))
    assert set(selection.kept.tolist()) == largest
    assert selection.k == find_knee(selection.ks, selection.mss, interpolation="polynomial", degree=2)


@pytest.mark.parametrize("criterion", ["l1", "mean_jm"])
def test_scores_keep_the_top(distances, magnitudes, criterion):
    name = {"l1": "magnitudes", "mean_jm": "separability"}[criterion]
    selection = select_channels(distances, SelectionConfig(criterion=criterion), **{name: magnitudes})
    assert selection.k == select_channels(distances).k
    top = sorted(range(32), key=lambda i: -magnitudes[i].item())[: selection.k]
    assert selection.kept.tolist() == sorted(top)


def test_equal_scores_keep_the_first(distances):
    selection = select_channels(
        distances, SelectionConfig(criterion="l1", keep=0.25), magnitudes=torch.ones(32)
    )
    assert selection.kept.tolist() == list(range(8))


def test_random_depends_on_its_seed_alone(distances):
    def kept(seed):
        config = SelectionConfig(criterion="random", seed=seed)
        return select_channels(distances, config).kept.tolist()

    state = torch.random.get_rng_state()
    draws = [kept(seed) for seed in range(5)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert draws == [kept(seed) for seed in range(5)]
    assert len({tuple(draw) for draw in draws}) == 5
    assert {len(set(draw)) for draw in draws} == {select_channels(distances).k}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("representative", ["medoid", "weight"])
def test_permuting_channels_permutes_kept(distances_of, magnitudes, seed, representative):
    distances = distances_of("jm", 32, seed)
    config = SelectionConfig(representative=representative)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(seed))
    straight = select_channels(distances, config, magnitudes=magnitudes)
    permuted = select_channels(distances[order][:, order], config, magnitudes=magnitudes[order])
    assert sorted(order[permuted.kept].tolist()) == straight.kept.tolist()


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


def test_curves_and_k_can_be_given(distances):
    curves = trace_curves(distances, torch.arange(1, 33))
    selection = select_channels(distances, SelectionConfig(flops=0.5), curves=curves, k=9)
    assert selection.reason is WidthReason.GIVEN
    assert torch.equal(selection.medoids, curves.sweep.medoids[7])
    assert torch.equal(selection.labels, curves.sweep.labels[7])
    assert torch.equal(selection.weights, torch.arange(1, 33, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"flops": 0.5}, {}, "flops=0.5 is a target for the whole network"),
        ({"representative": "weight"}, {}, "magnitudes is missing"),
        ({"criterion": "l1"}, {}, "magnitudes is missing"),
        ({"criterion": "mean_jm"}, {}, "separability is missing"),
        ({"criterion": "l1"}, {"magnitudes": torch.ones(3)}, r"shape \(3,\) .* \(32,\)"),
        ({"criterion": "l1"}, {"magnitudes": torch.full((32,), torch.nan)}, "not finite"),
        ({}, {"round_to": 33}, r"round_to is 33 .* 1\.\.32"),
        ({}, {"round_to": 0}, "round_to is 0"),
        ({}, {"k": 33}, "k is 33, for which there is no clustering of 32 channels"),
        ({}, {"k": 1}, "k is 1"),
        ({}, {"weights": torch.ones(5)}, r"weights have shape \(5,\)"),
    ],
)
def test_wrong_calls(distances, options, arguments, message):
    with pytest.raises(ValueError, match=message):
        select_channels(distances, SelectionConfig(**options), **arguments)


def test_curves_of_another_layer(distances, distances_of):
    with pytest.raises(ValueError, match="between 32 channels, but the curves are of 8"):
        select_channels(distances, curves=trace_curves(distances_of("noise", 8)))


@pytest.mark.parametrize("level", [math.nan, math.inf])
def test_wrong_levels(distances_of, level):
    with pytest.raises(ValueError, match="must be finite"):
        width_at_level(trace_curves(distances_of("noise", 8)), level, SelectionConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 0}, "grid is 0; .* integer >= 1"),
        ({"grid": True}, "grid is True"),
        ({"grid": 4.0}, "grid is 4.0"),
        ({"degree": 0}, "degree is 0"),
        ({"degree": None}, "degree is None"),
        ({"min_channels": 1}, "min_channels is 1; .* >= 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": math.nan}, "seed is nan"),
        ({"keep": 0}, r"keep is 0; .* \(0, 1\]"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"keep": True}, "keep is True"),
        ({"keep": math.nan}, "keep is nan"),
        ({"keep": "half"}, "keep is 'half'"),
        ({"flops": -0.1}, "flops is -0.1"),
        ({"flops": math.inf}, "flops is inf"),
        ({"keep": 0.5, "flops": 0.5}, "keep=0.5 and flops=0.5 both fix the volume"),
        ({"weighting": "both"}, "weighting is 'both'; .* contribution, none"),
        ({"curve": "MSS"}, "curve is 'MSS'; .* coverage, mss"),
        ({"interpolation": "spline"}, "interpolation is 'spline'"),
        ({"representative": None}, "representative is None"),
        ({"criterion": ["acsp"]}, "criterion is .* acsp, l1, random, mean_jm"),
    ],
)
def test_wrong_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        SelectionConfig(**options)


def test_paper_configuration():
    expected = SelectionConfig(
        grid=None,
        weighting="none",
        curve="mss",
        interpolation="polynomial",
        degree=2,
        representative="weight",
    )
    assert SelectionConfig.paper() == expected
