import re

import numpy as np
import pytest
import torch

from acsp_lightning.functional import ClassMoments, class_moments, merge_moments


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


@pytest.mark.parametrize("seed", range(4))
def test_merging_any_split_equals_one_pass(seed):
    values, labels = batch(seed)
    cuts = torch.randperm(299, generator=torch.Generator().manual_seed(seed))[:9] + 1
    sizes = torch.diff(torch.cat([torch.tensor([0]), cuts.sort().values, torch.tensor([300])]))
    # Without num_classes every part knows only the classes up to its own largest label.
    parts = [
        class_moments(v, y)
        for v, y in zip(values.split(sizes.tolist()), labels.split(sizes.tolist()), strict=True)
    ]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge_moments(merged, part)
    assert_matches(merged, values, labels, 5)


@pytest.mark.parametrize("swapped", [False, True])
def test_sides_may_know_different_classes(swapped):
    few = torch.tensor([0, 1, 0, 1])
    many = torch.tensor([3, 3, 1, 3])
    values = torch.arange(8 * 2.0).reshape(8, 2, 1) ** 1.5
    parts = [class_moments(values[:4], few), class_moments(values[4:], many)]
    merged = merge_moments(*(parts[::-1] if swapped else parts))
    assert_matches(merged, values, torch.cat([few, many]), 4)


def test_large_mean_keeps_the_digits_of_a_small_variance():
    generator = torch.Generator().manual_seed(0)
    values = 1000 + 0.1 * torch.randn(6400, 2, 1, generator=generator)
    labels = torch.randint(2, (6400,), generator=generator)
    merged = class_moments(values[:16], labels[:16], 2)
    for v, y in zip(values[16:].split(16), labels[16:].split(16), strict=True):
        merged = merge_moments(merged, class_moments(v, y, 2))
    assert_matches(merged, values, labels, 2, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_labels(dtype):
    values, labels = batch(1)
    assert_matches(class_moments(values, labels.to(dtype)), values, labels, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_values_are_summed_in_double(dtype):
    values, labels = batch(2)
    values = values.to(dtype)
    assert_matches(class_moments(values, labels), values.double(), labels, 5)


def test_empty_batch_is_neutral():
    values, labels = batch(3)
    whole = class_moments(values, labels, 5)
    merged = merge_moments(class_moments(values[:0], labels[:0], 5), whole)
    assert torch.equal(merged.count, whole.count)
    assert torch.equal(merged.mean, whole.mean)
    assert torch.equal(merged.m2, whole.m2)


@pytest.mark.parametrize(
    ("values", "labels", "num_classes", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), None, r"shape \(3, 2\)"),
        (torch.zeros(3, 2, 1), torch.zeros(4, dtype=torch.int64), None, r"labels \(4,\)"),
        (torch.zeros(3, 2, 1), torch.zeros(3), None, "must be integer class indices"),
        (torch.zeros(1, 2, 1), torch.tensor([True]), None, "must be integer class indices"),
        (torch.zeros(2, 2, 1), torch.tensor([0, 3]), 3, r"contain 3, .* outside \[0, 3\)"),
        (torch.zeros(2, 2, 1), torch.tensor([-1, 1]), None, r"contain -1, .* \[0, 2\)"),
        (torch.zeros(0, 2, 1), torch.zeros(0, dtype=torch.int64), None, "batch is empty"),
    ],
)
def test_wrong_batches(values, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        class_moments(values, labels, num_classes)


@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 4, 5)])
def test_different_layers_do_not_merge(shape):
    values, labels = batch(0)
    other = class_moments(torch.zeros(shape), torch.zeros(3, dtype=torch.int64))
    found = f"{shape[1]} channels at {shape[2]} positions"
    with pytest.raises(ValueError, match=f"4 channels at 3 positions .* {re.escape(found)}"):
        merge_moments(class_moments(values, labels), other)


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
