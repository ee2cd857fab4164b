import pytest
import torch

from acsp_lightning.functional import (
    SelectionConfig,
    WidthReason,
    find_knee,
    select_channels,
    sweep_k_medoids,
    trace_curves,
)


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
