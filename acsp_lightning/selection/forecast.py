"""The time of a network from the times of its layers."""

from collections.abc import Mapping

import numpy as np


class Forecast:
    """Share of a network's time as a function of the sum of its layers' times.

    Linear between networks that were timed, and constant outside of them. What lies between the layers
    (activations, sums, starting operations), and what they take more or less in a network than by
    themselves, is part of that.

    Args:
        shares: shares of the time of the uncut network that were measured, by the sum of the layers'
            times; that of the uncut network is 1.
    """

    def __init__(self, shares: Mapping[float, float]) -> None:
        self._shares = dict(shares)
        self._foreseen: dict[float, float] = {}

    @property
    def smallest(self) -> float:
        """The share of the network whose layers take the least."""
        return min(self._shares.items())[1]

    def share(self, total: float) -> float:
        """The share that is predicted for a sum of the layers' times."""
        sums = sorted(self._shares)
        return float(np.interp(total, sums, [self._shares[known] for known in sums]))

    def total(self, share: float) -> float:
        """The largest sum of the layers' times for which at most a share is predicted."""
        sums = sorted(self._shares)
        # By chance a network of slower layers may have been faster.
        rising = np.maximum.accumulate([self._shares[known] for known in sums])
        return float(np.interp(share, rising, sums))

    def learn(self, total: float, share: float) -> float:
        """Add a network that was timed; returns what was predicted for it."""
        foreseen = self._foreseen.setdefault(total, self.share(total))
        self._shares[total] = share
        return foreseen

    def foreseen(self, total: float) -> float:
        """The share that was predicted before a network of this sum was timed, if it was."""
        return self._foreseen.get(total, self.share(total))
