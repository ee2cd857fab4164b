"""The best channel of each pair of classes, against the stored vectors."""

from itertools import combinations

import pytest
import torch

from acsp_lightning.functional import (
    ClassMoments,
    _class_pairs,
    class_separation,
    separability_vectors,
)
from acsp_lightning.functional.class_separation import WORST_PAIRS, class_separation_of_layers


def moments_of(
    classes: int, channels: int = 5, positions: int = 3, unseen: int | None = None
) -> ClassMoments:
    generator = torch.Generator().manual_seed(classes)
    mean = torch.randn(classes, 5, 3, generator=generator, dtype=torch.float64)
    m2 = 20 * (0.1 + torch.rand(mean.shape, generator=generator, dtype=torch.float64))
    count = torch.full((classes,), 20)
    if unseen is not None:
        count[unseen] = 0
    return ClassMoments(count, mean, m2)


def by_hand(moments: ClassMoments, channels: list[int]) -> dict[tuple[int, int], float]:
    """JM of the best channel at its best position for every pair of classes, by their places."""
    seen = int((moments.count > 1).sum())
    vectors = separability_vectors(moments).view(moments.num_channels, -1, moments.num_positions)
    best = vectors[channels].amax((0, 2)).tolist()
    return dict(zip(combinations(range(seen), 2), best, strict=True))


@pytest.mark.parametrize("rare", [0, 1])
@pytest.mark.parametrize("block", [1, 12, 2**20])
def test_few_classes_have_a_cell_for_each_pair(
    monkeypatch: pytest.MonkeyPatch, block: int, rare: int
) -> None:
    monkeypatch.setattr(_class_pairs, "BLOCK", block)
    moments = moments_of(7, unseen=2)
    moments.count[2] = rare
    found = class_separation(moments, torch.tensor([1, 3]))
    assert found.ranges == ((0, 0), (1, 1), (3, 3), (4, 4), (5, 5), (6, 6))
    for values, channels in ((found.before, [0, 1, 2, 3, 4]), (found.after, [1, 3])):
        assert values.diagonal().isnan().all()
        for (one, other), best in by_hand(moments, channels).items():
            assert float(values[one, other]) == pytest.approx(best, rel=1e-12)
            assert float(values[other, one]) == float(values[one, other])


def test_many_classes_share_cells_and_the_worst_pair_counts() -> None:
    moments = moments_of(11)
    found = class_separation(moments, torch.tensor([0, 4]), ranges=3)
    assert found.ranges == ((0, 2), (3, 6), (7, 10))
    range_of = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    for values, channels in ((found.before, [0, 1, 2, 3, 4]), (found.after, [0, 4])):
        best = by_hand(moments, channels)
        for row in range(3):
            for column in range(3):
                least = min(
                    jm
                    for (one, other), jm in best.items()
                    if {(range_of[one], range_of[other]), (range_of[other], range_of[one])}
                    & {(row, column)}
                )
                assert float(values[row, column]) == pytest.approx(least, rel=1e-12)


def test_a_part_of_the_pairs() -> None:
    moments = moments_of(11)
    whole = class_separation(moments, torch.tensor([0, 4]), ranges=3)
    some = class_separation(moments, torch.tensor([0, 4]), ranges=3, class_pairs=30, seed=1)
    assert (whole.class_pairs, some.class_pairs) == (55, 30)
    assert some.ranges == whole.ranges
    # The least of some pairs is not less than the least of all.
    assert (some.before >= whole.before).logical_or(some.before.isnan()).all()
    few = class_separation(moments, torch.tensor([0]), ranges=3, class_pairs=1)
    assert int(few.before.isfinite().sum()) in (1, 2)
    same = class_separation(moments, torch.tensor([0, 4]), ranges=3, class_pairs=55)
    assert torch.equal(same.after, whole.after)


def test_nothing_is_lost_with_all_channels_and_never_won() -> None:
    moments = moments_of(6)
    whole = class_separation(moments, torch.arange(5))
    assert torch.equal(whole.before.nan_to_num(), whole.after.nan_to_num())
    some = class_separation(moments, torch.tensor([2]))
    assert (some.after <= some.before).logical_or(some.before.isnan()).all()
    assert (some.after < some.before).any()


def test_one_class_is_no_pair() -> None:
    moments = moments_of(3)
    moments.count[1:] = 0
    with pytest.raises(ValueError, match="1 of 3 classes have 2 samples"):
        class_separation(moments, torch.tensor([0]))


@pytest.mark.parametrize("rare", [None, 2])
def test_the_pairs_that_lose_most_are_named_by_their_classes(rare: int | None) -> None:
    moments = moments_of(9, unseen=rare)
    seen = [index for index in range(9) if index != rare]
    found = class_separation(moments, torch.tensor([0, 4]), ranges=3)
    before, after = by_hand(moments, [0, 1, 2, 3, 4]), by_hand(moments, [0, 4])
    lost = sorted(((before[pair] - after[pair], pair) for pair in before), reverse=True)
    assert len(found.worst) == min(WORST_PAIRS, sum(loss > 0 for loss, _ in lost))
    for named, (loss, (one, other)) in zip(found.worst, lost, strict=False):
        assert (named.first, named.second) == (seen[one], seen[other])
        assert named.before - named.after == pytest.approx(loss)
        assert named.before == pytest.approx(before[one, other])


def test_pairs_that_lose_nothing_are_not_named() -> None:
    assert class_separation(moments_of(6), torch.arange(5)).worst == ()
    few = class_separation(moments_of(11), torch.tensor([0]), class_pairs=3)
    assert len(few.worst) <= 3


def test_of_several_layers_the_best_counts_for_every_pair() -> None:
    layers = [(moments_of(5), torch.tensor([1])), (moments_of(5, unseen=None), torch.tensor([3]))]
    found = class_separation_of_layers(layers)
    each = [by_hand(moments, kept.tolist()) for moments, kept in layers]
    for (one, other), best in each[0].items():
        assert float(found.after[one, other]) == pytest.approx(max(best, each[1][one, other]))
