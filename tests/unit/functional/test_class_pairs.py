import numpy as np
import pytest
import torch
from helpers.points import many_classes, sample
from scipy.spatial.distance import cdist

from acsp_lightning.functional import (
    _class_pairs,
    class_moments,
    compare_channels,
    mean_separability,
    separability_vectors,
    separation_distances,
)


@pytest.mark.parametrize("block", [1, 400, 2**25])
def test_blocks_do_not_change_the_result(monkeypatch, block):
    moments = class_moments(*sample())
    stored = separability_vectors(moments).numpy()
    monkeypatch.setattr(_class_pairs, "BLOCK", block)
    distances = separation_distances(moments)
    np.testing.assert_allclose(distances.numpy(), cdist(stored, stored), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(mean_separability(moments).numpy(), stored.mean(axis=1), rtol=1e-12)


def test_unseen_classes_are_left_out():
    values, labels = sample()
    gaps = torch.tensor([0, 2, 3, 6])[labels]
    with_gaps = separation_distances(class_moments(values, gaps, 9))
    assert torch.equal(with_gaps, separation_distances(class_moments(values, labels)))


@pytest.mark.parametrize("rare", [[5], [9], [0, 7, 8]])
def test_classes_of_a_single_sample_are_left_out_as_if_unseen(rare):
    values, labels = sample()
    gaps = torch.tensor([1, 2, 3, 6])[labels]
    single = torch.full((len(rare), *values.shape[1:]), 1e3, dtype=values.dtype)
    moments = class_moments(torch.cat([values, single]), torch.cat([gaps, torch.tensor(rare)]), 11)
    without = class_moments(values, gaps, 11)
    found, expected = compare_channels(moments), compare_channels(without)
    assert (found.classes, found.class_pairs) == (4, 6)
    # Not to the bit: the sums of a batch are taken about its mean.
    near = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(found.distances, expected.distances, **near)
    torch.testing.assert_close(mean_separability(moments), mean_separability(without), **near)
    torch.testing.assert_close(separability_vectors(moments), separability_vectors(without), **near)


@pytest.mark.parametrize("block", [1, 3000, 2**25])
def test_sampled_pairs_are_a_part_of_all(monkeypatch, block):
    monkeypatch.setattr(_class_pairs, "BLOCK", block)
    moments = many_classes(classes=9, channels=5)
    drawn = torch.tensor([35, 0, 7, 8, 30])
    some = _class_pairs.ClassPairs.of(moments).only(drawn)
    assert some.number == 5
    stored = separability_vectors(moments).view(5, 36, 2)[:, drawn.sort().values]
    found = (1 - torch.cat(list(some.blocks(10)))).permute(2, 0, 1) * 2
    torch.testing.assert_close(found, stored, rtol=0, atol=1e-14)


def test_draws_depend_on_the_seed_alone():
    moments = many_classes()
    one, same, other = (compare_channels(moments, 50, seed).distances for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
