"""Validation samples held back from a capture: cuts are measured on others than chose them."""

import torch
from torch import Tensor

# At most this share is held back, and of large validation sets not more than are measured. A capture
# needs a few hundred samples; the error of a measured accuracy falls with the root of their number.
MOST_HELD_BACK = 0.5

# Multiples of it fill the unit interval evenly, whatever order or period the classes come in.
GOLDEN_RATIO = 0.6180339887498949


def share_held_back(samples: int, wanted: int) -> float:
    """The share of the validation samples to hold back, in [0, ``MOST_HELD_BACK``].

    Args:
        samples: number of validation samples, of all processes.
        wanted: number to measure on.
    """
    return min(MOST_HELD_BACK, wanted / samples) if samples else 0.0


def held_back(start: int, count: int, share: float) -> Tensor:
    """Which of some consecutive samples are held back, bool (count,).

    Args:
        start: number of samples that came before, in this process.
        count: number of samples.
        share: share of the samples that is held back.
    """
    places = torch.arange(start, start + count, dtype=torch.float64)
    return places * GOLDEN_RATIO % 1 < share
