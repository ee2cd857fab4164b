import math

import numpy as np
import pytest
import torch
from helpers.points import many_classes, sample
from scipy.integrate import quad
from scipy.stats import norm

from acsp_lightning.functional import (
    ClassMoments,
    class_moments,
    compare_channels,
    expected_seconds,
    jeffries_matusita,
    mean_separability,
    separability_vectors,
    separation_distances,
)


def moments_of(mean, variance, count=10):
    mean = torch.tensor(mean, dtype=torch.float64)
    variance = torch.tensor(variance, dtype=torch.float64)
    return ClassMoments(torch.full((len(mean),), count), mean, variance * count)


def integrated_overlap(mean_a, sd_a, mean_b, sd_b):
    """Integral of sqrt(p q), the Bhattacharyya coefficient, where its integrand is not zero."""
    low = min(mean_a - 12 * sd_a, mean_b - 12 * sd_b)
    high = max(mean_a + 12 * sd_a, mean_b + 12 * sd_b)

    def integrand(x):
        return math.exp(0.5 * (norm.logpdf(x, mean_a, sd_a) + norm.logpdf(x, mean_b, sd_b)))

    return quad(integrand, low, high, points=[mean_a, mean_b], limit=400, epsabs=1e-12)[0]


@pytest.mark.parametrize(
    "normals",
    [
        (0.0, 1.0, 0.0, 1.0),
        (0.0, 1.0, 1.5, 1.0),
        (-2.0, 0.5, 1.0, 2.0),
        (3.0, 1.0, 3.0, 4.0),
        (0.0, 0.1, 4.0, 3.0),
    ],
)
def test_jm_equals_the_integral(normals):
    mean_a, sd_a, mean_b, sd_b = (torch.tensor(x, dtype=torch.float64) for x in normals)
    jm = jeffries_matusita(mean_a, sd_a**2, mean_b, sd_b**2)
    overlap = integrated_overlap(*normals)
    assert jm.item() == pytest.approx(2 - 2 * overlap, abs=1e-9)
    # JM = 2 (1 - exp(-B)), so the Bhattacharyya distance must come back.
    assert -math.log1p(-jm.item() / 2) == pytest.approx(-math.log(overlap), abs=1e-8)


def test_jm_is_symmetric_and_bounded():
    generator = torch.Generator().manual_seed(0)
    mean_a, mean_b = 100 * torch.randn(2, 500, generator=generator, dtype=torch.float64)
    var_a, var_b = torch.rand(2, 500, generator=generator, dtype=torch.float64) + 1e-6
    jm = jeffries_matusita(mean_a, var_a, mean_b, var_b)
    assert torch.equal(jm, jeffries_matusita(mean_b, var_b, mean_a, var_a))
    assert jm.min() >= 0
    assert jm.max() <= 2
    assert (jeffries_matusita(mean_a, var_a, mean_a, var_a) < 1e-12).all()


def test_vectors_hold_every_pair_at_every_position():
    values, labels = sample()
    vectors = separability_vectors(class_moments(values, labels))
    assert vectors.shape == (6, 6 * 3)
    x, y = values.numpy(), labels.numpy()
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    for channel in range(6):
        for index, (a, b) in enumerate(pairs):
            for position in range(3):
                of_a, of_b = x[y == a, channel, position], x[y == b, channel, position]
                overlap = integrated_overlap(of_a.mean(), of_a.std(), of_b.mean(), of_b.std())
                found = vectors[channel, index * 3 + position].item()
                assert found == pytest.approx(2 - 2 * overlap, abs=1e-8)


def test_distances_are_symmetric_with_a_zero_diagonal():
    distances = separation_distances(class_moments(*sample(channels=40)))
    assert torch.equal(distances, distances.T)
    assert not distances.diagonal().any()


def test_near_equal_channels_stay_apart():
    mean = [[[0.0], [0.0], [0.0]], [[1.0], [1.0 + 1e-9], [3.0]]]
    moments = moments_of(mean, [[[1.0]] * 3] * 2)
    # dJM/dmu = mu / (2 v) * exp(-mu^2 / (8 v)) for means 0 and mu and equal variances v.
    slope = 0.5 * math.exp(-1 / 8)
    assert separation_distances(moments)[0, 1].item() == pytest.approx(slope * 1e-9, rel=1e-5)


def test_affine_maps_of_a_channel_change_nothing():
    values, labels = sample(channels=3)
    # Constant classes make the floors matter.
    values[labels == 0, 0] = 1.0
    values[labels < 3, 1] = 2.0
    scale = torch.tensor([-1e-3, 40.0, 1e5], dtype=torch.float64)[:, None]
    shift = torch.tensor([0.5, -300.0, 1e6], dtype=torch.float64)[:, None]
    before = separability_vectors(class_moments(values, labels))
    after = separability_vectors(class_moments(values * scale + shift, labels))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-7)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e4])
def test_a_constant_channel_separates_nothing(constant):
    values, labels = sample()
    values[:, 2] = constant
    moments = class_moments(values.float(), labels)
    assert not separability_vectors(moments)[2].any()
    assert mean_separability(moments)[2] == 0
    assert (mean_separability(moments)[[0, 1, 3, 4, 5]] > 0.05).all()


def test_float32_rounding_of_a_constant_separates_nothing():
    values, labels = sample()
    values[:, 2] = 0.1 * (1 + 1e-7 * values[:, 2])
    assert mean_separability(class_moments(values.float(), labels))[2] == 0


def test_a_constant_class_does_not_look_maximally_separating():
    # Same mean; one class constant, the others with variance 1: the floor is 1 % of 2/3, and the
    # integral over the two normals it stands for is the truth.
    moments = moments_of([[[1.0]], [[1.0]], [[1.0]]], [[[0.0]], [[1.0]], [[1.0]]])
    floored = math.sqrt(1e-2 * 2 / 3)
    expected = 2 - 2 * integrated_overlap(1.0, floored, 1.0, 1.0)
    vector = separability_vectors(moments)[0]
    assert vector[:2].tolist() == pytest.approx([expected] * 2, abs=1e-8)
    assert expected < 1.3


def test_constant_classes_that_differ_separate_fully():
    moments = moments_of([[[0.0]], [[1.0]]], [[[0.0]], [[0.0]]])
    assert separability_vectors(moments).item() == 2


@pytest.mark.parametrize("function", [separation_distances, mean_separability])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([4, 4, 4, 4], "1 of 5 classes have 2 samples or more; .* at least 2"),
        ([0, 0, 3, 2, 1], "1 of 4 classes have 2 samples or more; .* at least 2"),
        ([0, 1, 2, 3, 4], "0 of 5 classes have 2 samples or more; .* at least 2"),
    ],
)
def test_too_few_samples(function, labels, message):
    labels = torch.tensor(labels)
    with pytest.raises(ValueError, match=message):
        function(class_moments(torch.randn(len(labels), 2, 1), labels))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_activations(value):
    values, labels = sample()
    values[0, 3, 1] = values[1, 5, 0] = value
    with pytest.raises(ValueError, match=r"2 of 6 channels .* first is channel 3"):
        separation_distances(class_moments(values, labels))


def test_sampled_distances_are_as_wrong_as_they_say():
    moments = many_classes()
    exact = compare_channels(moments)
    assert (exact.classes, exact.class_pairs, exact.sampling_error) == (40, 780, 0.0)
    apart = ~torch.eye(24, dtype=torch.bool)
    truth = exact.distances[apart]
    claimed, real = [], []
    for seed in range(20):
        sampled = compare_channels(moments, class_pairs=78, seed=seed)
        assert (sampled.classes, sampled.class_pairs) == (40, 78)
        claimed.append(sampled.sampling_error)
        wrong = (sampled.distances[apart] - truth).square().mean().sqrt() / truth.median()
        real.append(wrong.item())
    assert 0.7 < np.mean(claimed) / np.mean(real) < 1.4
    assert max(real) < 0.15


def test_the_more_pairs_the_better_and_all_of_them_exactly():
    moments = many_classes()
    errors = [compare_channels(moments, pairs).sampling_error for pairs in (40, 160, 640, 780)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0
    everything = compare_channels(moments, class_pairs=10**9)
    assert torch.equal(everything.distances, separation_distances(moments))
    assert everything.class_pairs == 780


def test_too_few_class_pairs_are_refused():
    with pytest.raises(ValueError, match="class_pairs is 1; it must be at least 2"):
        compare_channels(many_classes(), class_pairs=1)


def test_expected_time_grows_with_the_class_pairs():
    moments = many_classes(classes=200)
    exact, sampled = (min(expected_seconds(moments, pairs) for _ in range(5)) for pairs in (None, 1990))
    # A tenth of the pairs, give or take a busy machine.
    assert 3 < exact / sampled < 30
