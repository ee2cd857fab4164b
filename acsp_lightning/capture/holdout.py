"""Validation samples held back from a capture: cuts are measured on others than chose them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

# At most this share is held back, and of large validation sets not more than are measured. A capture
# needs a few hundred samples; the error of a measured accuracy falls with the root of their number.
MOST_HELD_BACK = 0.5

SHUFFLED = (
    "The validation loader shuffles its samples: those that cuts are measured on are others than those "
    "held back from the capture, so that measured accuracies are a little too good. Validate in a fixed "
    "order, with shuffle=False."
)

SEEDED = 64  # stretches whose random numbers come from one seed


def share_held_back(samples: int, wanted: int) -> float:
    """The share of the validation samples to hold back, in [0, ``MOST_HELD_BACK``].

    Args:
        samples: number of validation samples, of all processes.
        wanted: number to measure on.
    """
    return min(MOST_HELD_BACK, wanted / samples) if samples else 0.0


def held_back(start: int, count: int, share: float) -> Tensor:
    """Which of some consecutive samples are held back, bool (count,).

    One at random of every stretch of ``1 / share`` samples: at random, because classes may come in any
    order or period, and by the place of a sample alone, because several passes have to agree.

    Args:
        start: number of samples that came before, in this process.
        count: number of samples.
        share: share of the samples that is held back.
    """
    held = torch.zeros(count, dtype=torch.bool)
    if not count or not share:
        return held
    stretches = torch.arange(
        max(0, int(start * share) - 1), int((start + count) * share) + 2, dtype=torch.float64
    )
    begins = (stretches / share).round().long()
    ends = ((stretches + 1) / share).round().long()
    places = begins + (_drawn(stretches) * (ends - begins)).long() - start
    held[places[(places >= 0) & (places < count)]] = True
    return held


def _drawn(stretches: Tensor) -> Tensor:
    """A random number in [0, 1) for each of some consecutive stretches, always the same."""
    first, last = int(stretches[0]) // SEEDED, int(stretches[-1]) // SEEDED
    parts = [
        torch.rand(SEEDED, dtype=torch.float64, generator=torch.Generator().manual_seed(block))
        for block in range(first, last + 1)
    ]
    return torch.cat(parts)[stretches.long() - first * SEEDED]


def is_shuffled(loaders: Any) -> bool:
    """Whether a loader, or one of several, draws its samples in another order in every pass."""
    random = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
    for loader in tree_leaves(loaders):
        batches = getattr(loader, "batch_sampler", None)
        for sampler in (getattr(loader, "sampler", None), getattr(batches, "sampler", None)):
            if isinstance(sampler, random) or getattr(sampler, "shuffle", False) is True:
                return True
    return False


def captured_labels(labels: Iterable[Tensor], share: float) -> Tensor:
    """Labels of the samples that are not held back.

    Args:
        labels: of all samples, by process.
        share: share of them that is held back.
    """
    return torch.cat([found[~held_back(0, len(found), share)] for found in labels])
