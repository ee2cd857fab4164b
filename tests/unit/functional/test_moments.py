import re

import numpy as np
import pytest
import torch

from acsp_lightning.functional import ClassMoments, ClassSums, class_moments


def numpy_moments(values, labels, num_classes):
    values = values.numpy().astype(np.float64)
    parts = [values[labels.numpy() == label] for label in range(num_classes)]
    shape = values.shape[1:]
    count = [len(part) for part in parts]
    mean = [part.mean(axis=0) if len(part) else np.zeros(shape) for part in parts]
    variance = [part.var(axis=0) if len(part) else np.zeros(shape) for part in parts]
    return np.array(count), np.stack(mean), np.stack(variance)


def assert_matches(moments, values, labels, num_classes, rtol=1e-10):
    count, mean, variance = numpy_moments(values, labels, num_classes)
    assert moments.count.tolist() == count.tolist()
    np.testing.assert_allclose(moments.mean.numpy(), mean, rtol=rtol, atol=1e-12)
    found = moments.m2.numpy() / np.maximum(count, 1)[:, None, None]
    np.testing.assert_allclose(found, variance, rtol=rtol, atol=1e-12)


def batch(seed, size=300, classes=5):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, 4, 3, generator=generator)
    labels = torch.randint(classes, (size,), generator=generator)
    return values, labels


def test_one_batch_equals_numpy():
    values, labels = batch(0)
    moments = class_moments(values, labels)
    assert_matches(moments, values, labels, 5)
    assert (moments.num_classes, moments.num_channels, moments.num_positions) == (5, 4, 3)


def summed(batches, num_classes):
    batches = list(batches)
    sums = ClassSums.about(batches[0][0], num_classes)
    for values, labels in batches:
        sums.add_(values, labels)
    return sums


def merged(parts):
    """Sums of several ranks, added up about the mean of all samples."""
    classes = max(len(part.count) for part in parts)
    parts = [part.widened(classes) for part in parts]
    origin = sum(part.whole() for part in parts) / sum(part.count.sum() for part in parts)
    for part in parts:
        part.move_(origin)
    count, total, squares = (
        sum(getattr(part, name) for part in parts) for name in ("count", "total", "squares")
    )
    return ClassSums(count, parts[0].origin, total, squares)


def parts_of(values, labels, seed):
    cuts = torch.randperm(299, generator=torch.Generator().manual_seed(seed))[:9] + 1
    sizes = torch.diff(torch.cat([torch.tensor([0]), cuts.sort().values, torch.tensor([300])])).tolist()
    return list(zip(values.split(sizes), labels.split(sizes), strict=True))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("seed", range(4))
def test_any_split_and_any_merge_equal_one_pass(seed, dtype, rtol):
    values, labels = batch(seed)
    parts = parts_of(values.to(dtype), labels, seed)
    in_batches = summed(parts, 5)
    assert in_batches.total.dtype == in_batches.squares.dtype == dtype
    # Three ranks, each with an origin of its own.
    ranks = [summed(part, 5) for part in (parts[:2], parts[2:7], parts[7:])]
    for sums in (in_batches, merged(ranks)):
        moments = sums.moments()
        count, mean, variance = numpy_moments(values, labels, 5)
        assert moments.count.tolist() == count.tolist()
        np.testing.assert_allclose(moments.mean, mean, rtol=rtol, atol=rtol * 1e-2)
        np.testing.assert_allclose(moments.m2, variance * count[:, None, None], rtol=rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_large_mean_keeps_the_digits_of_a_small_variance(dtype, rtol):
    generator = torch.Generator().manual_seed(0)
    values = (1000 + 0.1 * torch.randn(6400, 2, 1, generator=generator)).to(dtype)
    labels = torch.randint(2, (6400,), generator=generator)
    batches = list(zip(values.split(16), labels.split(16), strict=True))
    halves = [summed(half, 2) for half in (batches[:200], batches[200:])]
    for sums in (summed(batches, 2), merged(halves)):
        assert_matches(sums.moments(), values, labels, 2, rtol=rtol)


def test_a_class_never_seen_has_no_mean_and_no_deviation():
    values, labels = batch(0)
    moments = class_moments(values + 3, labels, 7)
    assert moments.count.tolist()[5:] == [0, 0]
    assert not moments.mean[5:].any()
    assert not moments.m2[5:].any()


def test_equal_samples_have_no_variance():
    sums = summed([(torch.full((9, 2, 1), 0.1), torch.arange(9) % 3)] * 50, 3)
    assert (sums.moments().m2.sqrt() < 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_labels(dtype):
    values, labels = batch(1)
    assert_matches(class_moments(values, labels.to(dtype)), values, labels, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_of_low_precision_values_are_in_double(dtype):
    values, labels = batch(2)
    values = values.to(dtype)
    assert_matches(class_moments(values, labels), values.double(), labels, 5)


def test_empty_batch_is_neutral():
    values, labels = batch(3)
    sums = summed([(values, labels), (values[:0], labels[:0])], 5)
    assert_matches(sums.moments(), values, labels, 5, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "labels", "num_classes", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), None, r"shape \(3, 2\)"),
        (torch.zeros(3, 2, 1), torch.zeros(4, dtype=torch.int64), None, r"labels \(4,\)"),
        (torch.zeros(3, 2, 1), torch.zeros(3), None, "must be integer class indices"),
        (torch.zeros(1, 2, 1), torch.tensor([True]), None, "must be integer class indices"),
        (torch.zeros(2, 2, 1), torch.tensor([0, 3]), 3, r"contain 3, .* outside \[0, 3\)"),
        (torch.zeros(2, 2, 1), torch.tensor([-1, 1]), None, r"contain -1, .* \[0, 2\)"),
        (torch.zeros(0, 2, 1), torch.zeros(0, dtype=torch.int64), 3, "batch is empty"),
    ],
)
def test_wrong_batches(values, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        class_moments(values, labels, num_classes)


@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 4, 5)])
def test_different_layers_do_not_add_up(shape):
    sums = summed([batch(0)], 5)
    other, labels = torch.zeros(shape), torch.zeros(3, dtype=torch.int64)
    found = f"{shape[1]} channels at {shape[2]} positions"
    with pytest.raises(ValueError, match=f"4 channels at 3 positions .* {re.escape(found)}"):
        sums.add_(other, labels)


def test_the_sum_of_all_values_is_that_of_the_values():
    values, labels = batch(4)
    sums = summed(parts_of(values, labels, 4), 5)
    np.testing.assert_allclose(sums.whole(), values.double().sum(0), rtol=1e-4, atol=1e-4)


def test_an_origin_far_away_is_left_behind():
    """Sums about zero of values around 1000 move to their mean; the new origin itself is no sum."""
    values, labels = batch(5)
    values = values.double() + 1000
    sums = ClassSums.about(torch.zeros_like(values), 5)
    sums.add_(values, labels)
    origin = values.mean(0)
    sums.move_(origin)
    assert_matches(sums.moments(), values, labels, 5, rtol=1e-7)
    np.testing.assert_array_equal(sums.origin, origin)
    np.testing.assert_allclose(sums.total.sum(0), torch.zeros(4, 3), atol=1e-6)


@pytest.mark.parametrize("swapped", [False, True])
def test_sides_may_know_different_classes(swapped):
    few, many = torch.tensor([0, 1, 0, 1]), torch.tensor([3, 3, 1, 3])
    values = torch.arange(8 * 2.0, dtype=torch.float64).reshape(8, 2, 1) ** 1.5
    parts = [summed([(values[:4], few)], 2), summed([(values[4:], many)], 4)]
    one, other = parts[::-1] if swapped else parts
    assert_matches(merged([one, other]).moments(), values, torch.cat([few, many]), 4)


@pytest.mark.parametrize(
    ("count", "mean", "m2", "message"),
    [
        ((2,), (2, 3), (2, 3), "must both be"),
        ((2,), (2, 3, 1), (2, 3, 2), "must both be"),
        ((3,), (2, 3, 1), (2, 3, 1), "one per class"),
    ],
)
def test_moments_check_their_shapes(count, mean, m2, message):
    with pytest.raises(ValueError, match=message):
        ClassMoments(
            torch.zeros(count, dtype=torch.int64),
            torch.zeros(mean, dtype=torch.float64),
            torch.zeros(m2, dtype=torch.float64),
        )


def test_moments_are_double():
    with pytest.raises(ValueError, match=r"mean is torch\.float32"):
        ClassMoments(torch.zeros(2), torch.zeros(2, 3, 1), torch.zeros(2, 3, 1))
