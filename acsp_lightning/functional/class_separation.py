"""Which classes a set of channels still tells apart."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from acsp_lightning.functional._class_pairs import ClassPairs
from acsp_lightning.functional.moments import ClassMoments


@dataclass(frozen=True, slots=True)
class ClassSeparation:
    """How well the best channel separates each pair of classes, before and after a selection.

    Pairs are gathered in G ranges of neighbouring classes, at most one class in each where there are
    few; a cell holds the pair that is separated least, so that a lost one does not hide in a mean.

    Attributes:
        ranges: index of the first and of the last class of each range; classes never seen are in none.
        before: by the best of all channels, JM in [0, 2], float64, (G, G), symmetric; NaN where a range
            of one class meets itself.
        after: by the best of the channels kept, never more.
        class_pairs: pairs of classes that were looked at; of many a part, drawn at random.
    """

    ranges: tuple[tuple[int, int], ...]
    before: Tensor
    after: Tensor
    class_pairs: int


def class_separation(
    moments: ClassMoments, kept: Tensor, ranges: int = 50, class_pairs: int | None = None, seed: int = 0
) -> ClassSeparation:
    """Compare what all channels separate with what some of them do.

    A channel separates two classes as well as it does at its best position. One exponential for each
    channel, position and class pair; memory grows with C * C and a block of pairs.

    Args:
        moments: of N channels at P positions, at least two samples of each class seen.
        kept: indices of the channels that stay, int64, at least one.
        ranges: G at most, at least 1.
        class_pairs: look at this many, at least 1; None, or as many as there are: at all. A cell of
            which no pair is looked at is NaN.
        seed: of the draw.

    Raises:
        ValueError: as :func:`acsp_lightning.functional.compare_channels`.
    """
    pairs = ClassPairs.of(moments)
    if class_pairs is not None and class_pairs < pairs.number:
        drawn = torch.randperm(pairs.number, generator=torch.Generator().manual_seed(seed))
        pairs = pairs.only(drawn[:class_pairs])
    classes = len(pairs.mean)
    seen = torch.nonzero(moments.count).flatten().tolist()
    number = min(ranges, classes)
    edges = [place * classes // number for place in range(number + 1)]
    owner = torch.bucketize(torch.arange(classes), torch.tensor(edges[1:]), right=True)
    best = pairs.mean.new_full((2, classes, classes), -torch.inf)
    kept = kept.to(best.device)
    for first in range(classes - 1):
        for block, seconds in pairs.of_first(first):
            separated = block.mul_(-2).clamp_(min=0)
            found = torch.stack([separated.amax((1, 2)), separated[..., kept].amax((1, 2))])
            # A pair comes again for other positions.
            best[:, first, seconds] = torch.maximum(best[:, first, seconds], found)
    first, second = torch.triu_indices(classes, classes, offset=1)
    cells = (owner[first] * number + owner[second]).expand(2, -1)
    least = torch.full((2, number * number), torch.inf, dtype=torch.float64)
    found = best[:, first, second].cpu()
    found[found < 0] = torch.inf  # not looked at
    least.scatter_reduce_(1, cells, found, "amin")
    least = least.view(2, number, number)
    least = torch.minimum(least, least.mT)
    before, after = least.masked_fill_(least.isinf(), torch.nan)
    bounds = tuple((seen[low], seen[high - 1]) for low, high in pairwise(edges))
    return ClassSeparation(bounds, before, after, pairs.number)
