"""Statistics of parts against those of the whole, and against numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.captured import IMAGES, LABELS
from helpers.fits import conv_net
from torch import nn

from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.capture.statistics import Activations, InputMoments, merge_activations
from acsp_lightning.functional import ClassSums
from acsp_lightning.structure.tracing import trace_groups


def captured(model: nn.Module, *parts: slice) -> Activations:
    capture = ActivationCapture(model, trace_groups(model, (IMAGES[:2],)).groups, None, num_classes=3)
    capture.attach()
    for part in parts:
        capture.expect(LABELS[part])
        model(IMAGES[part])
    capture.detach()
    return capture.finish()


@pytest.mark.parametrize("splits", [[5], [1, 17], [3, 6, 9]])
def test_parts_merge_to_the_whole(splits: list[int]) -> None:
    model = conv_net().eval()
    whole = captured(model, slice(18))
    edges = [0, *splits, 18]
    parts = [captured(model, slice(a, b)) for a, b in pairwise(edges)]
    merged = merge_activations([parts[0], captured(model), *parts[1:]])  # one process had no share
    assert merged.samples == 18
    for layer in whole.outputs:
        found, expected = merged.moments(layer), whole.moments(layer)
        assert torch.equal(found.count, expected.count)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.m2, expected.m2, rtol=1e-4, atol=1e-5)
    for layer, moments in whole.input_moments.items():
        torch.testing.assert_close(merged.input_moments[layer], moments, rtol=1e-5, atol=1e-6)


def test_nothing_was_captured() -> None:
    with pytest.raises(ValueError, match="No validation batch was captured"):
        merge_activations([captured(conv_net().eval())])


def of_one_layer(positions: int) -> Activations:
    values = torch.ones(4, 2, positions)
    sums = ClassSums.about(values, num_classes=3)
    sums.add_(values, torch.tensor([0, 1, 2, 0]))
    return Activations({"conv": sums}, {}, samples=4)


def test_maps_of_two_sizes_do_not_merge() -> None:
    with pytest.raises(ValueError, match=r"'conv' gave maps of 16 and of 36 positions"):
        merge_activations([of_one_layer(16), of_one_layer(36)])


def test_second_moments_against_numpy() -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = InputMoments(0, torch.zeros(5, 5, dtype=torch.float64))
    first, second = start.with_rows(rows[:, :13]), InputMoments(0, torch.zeros(5, 5).double())
    found = first.merged(second.with_rows(rows[:, 13:]))
    values = rows.numpy()
    assert found.count == 40
    np.testing.assert_allclose(found.mean, values @ values.T / 40)


@pytest.mark.parametrize("split", [[40], [3, 37], [3, 2, 20, 15], [20, 20], [1] * 40])
@pytest.mark.parametrize("width", [5, 30, 160, 200])
def test_few_vectors_are_held_and_many_are_summed(width: int, split: list[int]) -> None:
    """A layer of 160 inputs holds 40 vectors, one of 30 only seven; parts are merged either way."""
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(width, 40, generator=generator, dtype=torch.float64)
    products = rows.numpy() @ rows.numpy().T
    none = InputMoments(0, rows[:, :0])
    added = merged = none
    for part in rows.split(split, 1):
        added = added.with_rows(part)
        merged = merged.merged(none.with_rows(part))
    for found in (added, merged):
        assert found.count == 40
        assert (found.vectors is not None) is (width >= 160)
        np.testing.assert_allclose(found.total, products)
        np.testing.assert_allclose(found.mean, products / 40)
        np.testing.assert_allclose(found.power, products.diagonal() / 40)
    assert none.count == 0
    assert none.held.shape == (width, 0)
