"""Validation samples held back from a capture: cuts are measured on others than chose them."""

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

# Samples are drawn block by block, so that every stretch of the data has its share.
BLOCK = 64


def share_held_back(samples: int, wanted: int) -> float:
    """The share of the validation samples to hold back, in [0, ``MOST_HELD_BACK``].

    Args:
        samples: number of validation samples, of all processes.
        wanted: number to measure on.
    """
    return min(MOST_HELD_BACK, wanted / samples) if samples else 0.0


def held_back(start: int, count: int, share: float) -> Tensor:
    """Which of some consecutive samples are held back, bool (count,).

    Drawn at random, because classes may come in any order or period, and by the place of a sample alone,
    because several passes have to agree.

    Args:
        start: number of samples that came before, in this process.
        count: number of samples.
        share: share of the samples that is held back.
    """
    if not count or not share:
        return torch.zeros(count, dtype=torch.bool)
    blocks = range(start // BLOCK, (start + count - 1) // BLOCK + 1)
    drawn = torch.cat([_drawn(block, share) for block in blocks])
    return drawn[start - blocks.start * BLOCK :][:count]


def _drawn(block: int, share: float) -> Tensor:
    """Which samples of a block are held back, bool (BLOCK,)."""
    quota = round((block + 1) * BLOCK * share) - round(block * BLOCK * share)
    order = torch.randperm(BLOCK, generator=torch.Generator().manual_seed(block))
    return order < quota


def is_shuffled(loaders: Any) -> bool:
    """Whether a loader, or one of several, draws its samples in another order in every pass."""
    samplers = [getattr(loader, "sampler", None) for loader in tree_leaves(loaders)]
    random = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
    return any(isinstance(one, random) or getattr(one, "shuffle", False) is True for one in samplers)
