import numpy as np
import pytest
import torch
from helpers.points import some_weights

from acsp_lightning.functional import _medoid_search
from acsp_lightning.functional._medoid_search import Clustering


@pytest.mark.parametrize("kind", ["jm", "duplicates"])
def test_sums_kept_through_every_move_equal_sums_made_anew(distances_of, kind):
    source = torch.arange(10).repeat(3)
    distances = distances_of("noise", 10)[source][:, source]
    if kind == "jm":
        distances = distances_of("jm", 30)
    distances, weights = distances.numpy(), some_weights(30, 2).numpy()
    kept = Clustering(distances, weights, np.array([3, 7]), 20, 1e-12)
    moves = [lambda: kept.add(1)] * 8 + [kept.swap, lambda: kept.drop(4), kept.swap, lambda: kept.add(3)]
    for move in moves:
        move()
        kept.become((kept.medoids() + 1) % 30)
        anew = Clustering(distances, weights, kept.slots, 20, 1e-12)
        paid = (weights[:, None] * distances[:, kept.slots]).min(axis=1)
        assert kept.deviation() == pytest.approx(paid.sum())
        np.testing.assert_allclose(kept.second, anew.second)
        np.testing.assert_allclose(kept.gain, anew.gain, atol=1e-12)
        # Between medoids that tie a channel may belong to either.
        if kind == "jm":
            np.testing.assert_allclose(kept.saved, anew.saved, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_gains_are_what_a_medoid_more_or_another_saves(distances_of, monkeypatch, share, weighted):
    """By brute force, whether the distances are picked one by one or all computed with."""
    monkeypatch.setattr(_medoid_search, "SPARSE", share)
    distances = distances_of("jm", 30).numpy()
    weights = some_weights(30, 4).numpy() if weighted else np.ones(30)
    state = Clustering(distances, weights, np.array([3, 7, 11]), 20, 1e-12)
    state.add(4)
    state.drop(1)

    def paid(medoids):
        return weights @ distances[:, medoids].min(axis=1)

    losses = np.bincount(state.label, weights * (state.second - state.first))
    for comer in set(range(30)) - set(state.slots.tolist()):
        more = paid([*state.slots, comer])
        assert state.deviation() - state.gain[comer] == pytest.approx(more)
        for slot in range(len(state.slots)):
            others = np.delete(state.slots, slot)
            price = losses[slot] - state.saved[slot, comer]
            assert more + price == pytest.approx(paid([*others, comer]))


@pytest.mark.parametrize("duplicates", [False, True])
def test_channels_added_together_are_those_added_one_by_one(distances_of, duplicates):
    source = torch.arange(10).repeat(4) if duplicates else torch.arange(40)
    distances = distances_of("jm", len(source.unique()))[source][:, source].numpy()
    weights = some_weights(40, 5).numpy()
    together, single = (Clustering(distances, weights, np.array([3, 7]), 30, 1e-12) for _ in range(2))
    together.add(20)
    for _ in range(20):
        extra = [
            weights @ np.minimum(single.first, distances[j]) if j not in single.slots else np.inf
            for j in range(40)
        ]
        best = int(np.flatnonzero(np.array(extra) <= min(extra) + 1e-12)[0])
        single.add(1)
        assert single.slots[-1] == best
    assert together.slots.tolist() == single.slots.tolist()
