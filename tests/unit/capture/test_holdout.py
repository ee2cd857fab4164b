"""Samples held back are as many as was asked for, and spread evenly over data of any order."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from acsp_lightning.capture.holdout import held_back, is_shuffled, share_held_back


@pytest.mark.parametrize(
    ("samples", "wanted", "share"),
    [(100, 20, 0.2), (100, 50, 0.5), (100, 51, 0.5), (100, 1000, 0.5), (1, 1, 0.5), (0, 7, 0.0)],
)
def test_as_many_as_wanted_but_half_at_most(samples: int, wanted: int, share: float) -> None:
    assert share_held_back(samples, wanted) == share


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1, 0.037, 1 / 3, 1.0])
@pytest.mark.parametrize("samples", [50, 361, 5000, 1_000_000])
def test_the_share_is_met(samples: int, share: float) -> None:
    assert abs(int(held_back(0, samples, share).sum()) - share * samples) <= 1


@pytest.mark.parametrize("samples", [100, 101, 392, 1500, 4097, 50_000])
@pytest.mark.parametrize("wanted", [50, 196, 748, 1024])
def test_no_fewer_than_wanted_are_held_back_unless_they_are_half(samples: int, wanted: int) -> None:
    held = int(held_back(0, samples, share_held_back(samples, wanted)).sum())
    assert held == wanted if 2 * wanted <= samples else held in (samples // 2, samples // 2 + 1)


def test_nothing_is_held_back_of_a_share_of_zero() -> None:
    assert not held_back(0, 1000, 0.0).any()


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("period", [*range(2, 41), 55, 64, 89, 100, 144, 233, 1000])
def test_every_class_has_its_share_whatever_the_period(period: int, share: float) -> None:
    """Classes in turn: every other sample would be all of some of an even number of classes, or none."""
    held = held_back(0, 300 * period, share).view(300, period).double()
    error = (share * (1 - share) / 300) ** 0.5  # of independent draws
    assert (held.mean(0) - share).abs().max() < 5 * error


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_every_class_has_its_share_of_sorted_data(share: float) -> None:
    for of_class in held_back(12_345, 6000, share).double().split(200):
        assert abs(float(of_class.mean()) - share) <= 1.01 / 200


def test_the_share_is_met_far_into_the_data() -> None:
    held = held_back(10**9, 1000, 0.25)
    assert abs(int(held.sum()) - 250) <= 1


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [7] * 14 + [2], [64, 0, 36]])
def test_consecutive_batches_are_held_back_like_one(sizes: list[int]) -> None:
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    parts = [held_back(start, size, 0.3) for start, size in zip(starts, sizes, strict=True)]
    assert torch.equal(torch.cat(parts), held_back(0, 100, 0.3))


DATA = list(range(10))


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DataLoader(DATA), False),
        (DataLoader(DATA, shuffle=True), True),
        (DataLoader(DATA, sampler=SequentialSampler(DATA)), False),
        (DataLoader(DATA, sampler=SubsetRandomSampler([1, 2])), True),
        (DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 10, 5)), True),
        (DataLoader(DATA, sampler=DistributedSampler(DATA, 2, 0, shuffle=False)), False),
        (DataLoader(DATA, sampler=DistributedSampler(DATA, 2, 0)), True),
        (DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 5, False)), True),
        (DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 5, False)), False),
        ([DataLoader(DATA), DataLoader(DATA, shuffle=True)], True),
        ({"a": DataLoader(DATA)}, False),
        ([(torch.zeros(2), torch.zeros(2))], False),
        (None, False),
    ],
)
def test_loaders_that_shuffle(loader: object, expected: bool) -> None:
    assert is_shuffled(loader) is expected
