from itertools import combinations

import kmedoids
import pytest
import torch
from helpers.points import some_weights

from acsp_lightning.functional import coverage, mean_simplified_silhouette, sweep_k_medoids
from acsp_lightning.functional._medoid_search import WIDE


def deviation_of(distances, weights, medoids):
    return float((weights * distances[:, list(medoids)].min(dim=1).values).sum())


@pytest.mark.parametrize("kind", ["jm", "clustered", "noise"])
@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_small_sweeps_reach_the_global_optimum(distances_of, kind, n, weighted, seed):
    distances = distances_of(kind, n, seed)
    weights = some_weights(n, seed) if weighted else torch.ones(n, dtype=torch.float64)
    sweep = sweep_k_medoids(distances, weights if weighted else None)
    assert sweep.ks.tolist() == list(range(2, n))
    for k, found in zip(sweep.ks.tolist(), sweep.deviation.tolist(), strict=True):
        best = min(deviation_of(distances, weights, m) for m in combinations(range(n), k))
        assert found == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("kind", ["jm", "clustered", "noise"])
@pytest.mark.parametrize(("n", "seed"), [(64, 0), (64, 1), (64, 2), (128, 0)])
def test_within_one_percent_of_fasterpam_at_every_k(distances_of, kind, n, seed):
    distances = distances_of(kind, n, seed)
    matrix = distances.numpy()
    sweep = sweep_k_medoids(distances)
    for k, found in zip(sweep.ks.tolist(), sweep.deviation.tolist(), strict=True):
        runs = [kmedoids.fasterpam(matrix, k, init="build", n_cpu=1)]
        runs += [
            kmedoids.fasterpam(matrix, k, init="random", random_state=start, n_cpu=1)
            for start in range(3)
        ]
        assert found <= 1.01 * min(run.loss for run in runs), f"k = {k}"


@pytest.mark.parametrize("weighted", [False, True])
def test_sweep_agrees_with_itself(distances_of, weighted):
    distances = distances_of("jm", 30)
    weights = some_weights(30, 1) if weighted else None
    sweep = sweep_k_medoids(distances, weights)
    plain = torch.ones(30, dtype=torch.float64) if weights is None else weights
    for row, k in enumerate(sweep.ks.tolist()):
        medoids, labels = sweep.medoids[row], sweep.labels[row]
        assert medoids.tolist() == sorted(set(medoids.tolist()))
        assert len(medoids) == k
        assert labels[medoids].tolist() == list(range(k))
        own = distances[torch.arange(30), medoids[labels]]
        assert torch.equal(own, distances[:, medoids].min(dim=1).values)
        expected = deviation_of(distances, plain, medoids)
        assert sweep.deviation[row].item() == pytest.approx(expected, rel=1e-12)
    assert (sweep.deviation.diff() < 0).all()


def test_weights_count_like_copies(distances_of):
    """A weight of 3 must mean the same as three channels in the same place."""
    distances = distances_of("noise", 7)
    weights = torch.tensor([1, 3, 1, 2, 1, 1, 2])
    source = torch.repeat_interleave(torch.arange(7), weights)
    weighted = sweep_k_medoids(distances, weights, ks=[2, 3, 4])
    copied = sweep_k_medoids(distances[source][:, source], ks=[2, 3, 4])
    torch.testing.assert_close(weighted.deviation, copied.deviation)
    for ours, theirs in zip(weighted.medoids, copied.medoids, strict=True):
        assert ours.tolist() == source[theirs].tolist()


def test_duplicates_share_a_cluster_and_medoids_own_themselves(distances_of):
    source = torch.arange(6).repeat(3)
    distances = distances_of("noise", 6)[source][:, source]
    sweep = sweep_k_medoids(distances)
    for row, medoids in enumerate(sweep.medoids):
        labels = sweep.labels[row]
        assert labels[medoids].tolist() == list(range(len(medoids)))
        assert len(set(medoids.tolist())) == len(medoids)
        if len(medoids) <= 6:
            assert torch.equal(labels[:6].repeat(3), labels)
    assert not sweep.deviation[sweep.ks >= 6].any()
    assert (sweep.deviation[sweep.ks < 6] > 0).all()


def test_equal_input_gives_an_equal_sweep(distances_of):
    distances = distances_of("jm", 40)
    first, second = sweep_k_medoids(distances), sweep_k_medoids(distances.clone())
    assert all(torch.equal(a, b) for a, b in zip(first.medoids, second.medoids, strict=True))


@pytest.mark.parametrize("kind", ["jm", "clustered", "noise"])
@pytest.mark.parametrize("step", [1, 14])
def test_wide_layers_are_within_one_percent_of_fasterpam(distances_of, kind, step):
    """Where k are left out, they are passed only once."""
    distances = distances_of(kind, WIDE + 32)
    sweep = sweep_k_medoids(distances, ks=range(2, WIDE + 32, step))
    for k, found in zip(sweep.ks.tolist(), sweep.deviation.tolist(), strict=True):
        runs = [
            kmedoids.fasterpam(distances.numpy(), k, init="random", random_state=start, n_cpu=1)
            for start in range(3)
        ]
        assert found <= 1.01 * min(run.loss for run in runs), f"k = {k}"


def test_only_the_ks_asked_for(distances_of):
    distances = distances_of("clustered", 40)
    sweep = sweep_k_medoids(distances, ks=[9, 5, 9])
    assert sweep.ks.tolist() == [5, 9]
    assert [len(medoids) for medoids in sweep.medoids] == [5, 9]
    whole = sweep_k_medoids(distances)
    assert (sweep.deviation <= 1.01 * whole.deviation[[3, 7]]).all()


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_channels_to_cluster(n):
    distances = 1 - torch.eye(n)
    sweep = sweep_k_medoids(distances)
    assert len(sweep.ks) == len(sweep.medoids) == len(sweep.deviation) == 0
    assert sweep.labels.shape == (0, n)
    assert mean_simplified_silhouette(distances, sweep).shape == (0,)
    assert coverage(distances, sweep).shape == (0,)


def naive_mss(distances, medoids, labels):
    scores = []
    for x in range(len(distances)):
        own = medoids[labels[x]]
        a = distances[x][own]
        others = [distances[x][m] for m in medoids if m != own]
        b = sum(others) / len(others)
        if x in medoids:
            scores.append(1.0)
        else:
            scores.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("kind", ["jm", "clustered", "noise", "duplicates"])
def test_mss_follows_the_definition(distances_of, kind):
    if kind == "duplicates":
        source = torch.arange(5).repeat(3)
        distances = distances_of("noise", 5)[source][:, source]
    else:
        distances = distances_of(kind, 20)
    sweep = sweep_k_medoids(distances)
    expected = [
        naive_mss(distances.tolist(), medoids.tolist(), labels.tolist())
        for medoids, labels in zip(sweep.medoids, sweep.labels, strict=True)
    ]
    found = mean_simplified_silhouette(distances, sweep).tolist()
    assert found == pytest.approx(expected, abs=1e-12)


def test_mss_by_hand():
    """Channels at 0, 1, 10 and 11: two pairs, the channel beside a medoid scores (b - 1) / b."""
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]], dtype=torch.float64)
    distances = torch.cdist(x, x)
    sweep = sweep_k_medoids(distances, ks=[2])
    assert sweep.deviation.item() == 2
    other = {0: 1, 1: 0, 2: 3, 3: 2}
    m, n = sweep.medoids[0].tolist()
    b = abs(x[other[m]] - x[n]).item(), abs(x[other[n]] - x[m]).item()
    expected = (2 + (b[0] - 1) / b[0] + (b[1] - 1) / b[1]) / 4
    assert mean_simplified_silhouette(distances, sweep).item() == pytest.approx(expected)


def test_all_channels_alike():
    distances = torch.zeros(9, 9)
    sweep = sweep_k_medoids(distances)
    # Only the medoids themselves score.
    assert mean_simplified_silhouette(distances, sweep).tolist() == pytest.approx(
        [k / 9 for k in range(2, 9)]
    )
    assert coverage(distances, sweep).tolist() == [1.0] * 7


@pytest.mark.parametrize("weighted", [False, True])
def test_coverage_is_the_share_of_the_single_medoid(distances_of, weighted):
    distances = distances_of("jm", 25)
    weights = some_weights(25, 3) if weighted else torch.ones(25, dtype=torch.float64)
    sweep = sweep_k_medoids(distances, weights)
    single = min(deviation_of(distances, weights, [m]) for m in range(25))
    expected = [1 - deviation_of(distances, weights, m) / single for m in sweep.medoids]
    found = coverage(distances, sweep, weights)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert (found.diff() > 0).all()
    assert found.min() > 0
    assert found.max() < 1


@pytest.mark.parametrize(
    ("distances", "weights", "ks", "message"),
    [
        (torch.zeros(3, 4), None, None, r"shape \(3, 4\); .* \(N, N\)"),
        (torch.zeros(0, 0), None, None, "N >= 1"),
        (torch.full((3, 3), torch.nan), None, None, "negative or non-finite"),
        (torch.eye(3) - 1, None, None, "negative or non-finite"),
        (torch.ones(3, 3), None, None, "zero diagonal"),
        (torch.ones(3, 3).triu(1), None, None, "not symmetric"),
        (torch.zeros(3, 3), torch.ones(4), None, r"shape \(4,\); they must be \(3,\)"),
        (torch.zeros(3, 3), torch.tensor([1.0, -1.0, 1.0]), None, "weights contain negative"),
        (torch.zeros(3, 3), torch.tensor([1.0, torch.inf, 1.0]), None, "non-finite"),
        (torch.zeros(3, 3), torch.zeros(3), None, "all zero"),
        (torch.zeros(5, 5), None, [2, 5], "ks contains 5; .* 2 to 4 clusters"),
        (torch.zeros(5, 5), None, [1], "ks contains 1"),
    ],
)
def test_wrong_input(distances, weights, ks, message):
    with pytest.raises(ValueError, match=message):
        sweep_k_medoids(distances, weights, ks)


@pytest.mark.parametrize("num_channels", [3, 5, 9, 30])
@pytest.mark.parametrize("seed", range(4))
def test_ties_and_channels_without_weight(num_channels: int, seed: int) -> None:
    """Duplicates and zero weights leave many moves that gain nothing; every medoid is still another."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(0, 3, (num_channels, 2), generator=generator).double()
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    weights = torch.rand(num_channels, generator=generator, dtype=torch.float64)
    weights[::2] = 0
    sweep = sweep_k_medoids(distances, weights)
    for k, medoids, labels, deviation in zip(
        sweep.ks.tolist(), sweep.medoids, sweep.labels, sweep.deviation, strict=True
    ):
        assert len(set(medoids.tolist())) == k
        assert torch.equal(labels[medoids], torch.arange(k))
        nearest = distances[medoids].amin(0)
        assert torch.equal(distances[torch.arange(num_channels), medoids[labels]], nearest)
        assert float(deviation) == pytest.approx(float((weights * nearest).sum()), abs=1e-12)
