"""Which pairs of classes a set of channels separates."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from acsp_lightning.functional._class_pairs import ClassPairs, seen_classes
from acsp_lightning.functional.moments import ClassMoments

# Pairs of classes that a report names.
WORST_PAIRS = 12


@dataclass(frozen=True, slots=True)
class LostPair:
    """A pair of classes that a selection separates less.

    Attributes:
        first: index of a class.
        second: index of a later class.
        before: JM by the best of all channels, in [0, 2].
        after: JM by the best of the kept channels, less than ``before``.
    """

    first: int
    second: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class ClassSeparation:
    """How well the best channel separates each pair of classes, before and after a selection.

    Classes are grouped into G ranges of neighbouring indices, of one class each if there are few; a
    cell holds the minimum over its pairs, so that a mean cannot hide a lost pair.

    Attributes:
        ranges: indices of the first and last class of each range; classes with fewer than two samples
            are in none.
        before: JM by the best of all channels, in [0, 2], float64, (G, G), symmetric; NaN where a cell
            has no pair, as on the diagonal for a range of one class.
        after: the same by the best of the kept channels, at most ``before``.
        class_pairs: number of class pairs compared; a random sample, if there are many.
        worst: the compared pairs that lose most, largest loss first, at most ``WORST_PAIRS``.
    """

    ranges: tuple[tuple[int, int], ...]
    before: Tensor
    after: Tensor
    class_pairs: int
    worst: tuple[LostPair, ...] = ()


def class_separation(
    moments: ClassMoments, kept: Tensor, ranges: int = 50, class_pairs: int | None = None, seed: int = 0
) -> ClassSeparation:
    """Compare how well all channels and the kept ones of one layer separate the classes.

    A channel counts at the position where it separates two classes best. Time: one exponential for each
    channel, position and class pair; memory: C * C values and a block of pairs.

    Args:
        moments: moments of N channels at P positions; classes with fewer than two samples are left out.
        kept: indices of the kept channels, int64, at least one.
        ranges: maximum of G, at least 1.
        class_pairs: number of pairs to sample, at least 1; None, or at least as many as there are: all.
            A cell without a sampled pair is NaN.
        seed: seed of the sample.

    Raises:
        ValueError: as :func:`acsp_lightning.functional.compare_channels`.
    """
    return class_separation_of_layers([(moments, kept)], ranges, class_pairs, seed)


def class_separation_of_layers(
    layers: Iterable[tuple[ClassMoments, Tensor]],
    ranges: int = 50,
    class_pairs: int | None = None,
    seed: int = 0,
) -> ClassSeparation:
    """As :func:`class_separation`, of several layers with the same samples: the best layer counts.

    Args:
        layers: moments of the channels of each layer, and its kept channels; at least one layer.
        ranges: as there.
        class_pairs: as there.
        seed: as there.
    """
    first, *others = layers
    seen = seen_classes(first[0]).tolist()
    best, number = _best_distances(*first, class_pairs, seed)
    for layer in others:
        best = torch.maximum(best, _best_distances(*layer, class_pairs, seed)[0])
    return _gathered(best, seen, min(ranges, len(seen)), number)


def _best_distances(
    moments: ClassMoments, kept: Tensor, class_pairs: int | None, seed: int
) -> tuple[Tensor, int]:
    """JM of every pair of the classes seen by the best of all and of the kept channels, and of how many.

    (2, C, C), on the CPU; -inf for pairs that were not compared, and on and below the diagonal.
    """
    pairs = ClassPairs.of(moments)
    if class_pairs is not None and class_pairs < pairs.number:
        drawn = torch.randperm(pairs.number, generator=torch.Generator().manual_seed(seed))
        pairs = pairs.only(drawn[:class_pairs])
    classes = len(pairs.mean)
    best = pairs.mean.new_full((2, classes, classes), -torch.inf)
    kept = kept.to(best.device)
    for first in range(classes - 1):
        for block, seconds in pairs.of_first(first):
            separated = block.sub_(1).mul_(-2).clamp_(min=0)
            found = torch.stack([separated.amax((1, 2)), separated[..., kept].amax((1, 2))])
            # A pair occurs once for every chunk of positions.
            best[:, first, seconds] = torch.maximum(best[:, first, seconds], found)
    return best.cpu(), pairs.number


def _gathered(best: Tensor, seen: list[int], number: int, class_pairs: int) -> ClassSeparation:
    """The cells of ``number`` ranges, and the pairs that lose most."""
    classes = len(seen)
    edges = [place * classes // number for place in range(number + 1)]
    owner = torch.bucketize(torch.arange(classes), torch.tensor(edges[1:]), right=True)
    first, second = torch.triu_indices(classes, classes, offset=1)
    cells = (owner[first] * number + owner[second]).expand(2, -1)
    least = torch.full((2, number * number), torch.inf, dtype=torch.float64)
    found = best[:, first, second]
    found[found < 0] = torch.inf  # not sampled
    lost = (found[0] - found[1]).nan_to_num()
    order = lost.argsort(descending=True, stable=True)[:WORST_PAIRS]
    worst = tuple(
        LostPair(seen[first[at]], seen[second[at]], float(found[0, at]), float(found[1, at]))
        for at in order.tolist()
        if lost[at] > 0
    )
    least.scatter_reduce_(1, cells, found, "amin")
    least = least.view(2, number, number)
    least = torch.minimum(least, least.mT)
    before, after = least.masked_fill_(least.isinf(), torch.nan)
    bounds = tuple((seen[low], seen[high - 1]) for low, high in pairwise(edges))
    return ClassSeparation(bounds, before, after, class_pairs, worst)
