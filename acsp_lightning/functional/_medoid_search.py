"""The search behind the k-medoids sweep: greedy moves along k, swaps at every k."""

import torch
from torch import Tensor

# Steps along k of the passes after the first. A forward pass alone can be caught in the local
# optimum it inherits from k - 1. Coming down from k + 4 and up from k - 4 crosses such optima,
# because the swaps in between act on another number of clusters, and the last pass hands on from
# k + 1 what the two found.
STRIDES = (-4, 4, -1)

# Relative to the deviation of the best single medoid. A swap must gain more than summation in
# float64 loses, or equal clusterings could be swapped for each other for ever.
SWAP_TOLERANCE = 1e-12


class MedoidSearch:
    """Local optima of weighted k-medoids on one matrix of distances.

    Every swap of a medoid for another channel is judged at once, in O(N^2) for each k, by the sums
    of FastPAM1; a medoid is swapped as long as that pays.

    References:
        E. Schubert, P. Rousseeuw, "Fast and eager k-medoids clustering", 2021.
    """

    def __init__(self, distances: Tensor, weights: Tensor) -> None:
        self.distances = distances
        self.weights = weights
        # Row i is what channel i pays for each medoid it could have, so no sum below needs weights.
        self.costs = distances * weights[:, None]
        self.single = self.costs.sum(dim=0)
        self.tolerance = SWAP_TOLERANCE * self.single.min().item()

    def run(self, largest: int) -> dict[int, Tensor]:
        """Search k = 2..largest.

        Args:
            largest: in 2..N-1.

        Returns:
            For each k the medoids, ascending, shape (k,). Some k above ``largest`` are there too.
        """
        top = min(largest + max(map(abs, STRIDES)), len(self.distances) - 1)
        medoids = self.single.argmin()[None]
        found: dict[int, Tensor] = {}
        deviation: dict[int, float] = {}
        for k in range(2, top + 1):
            medoids = self._swap(self._add(medoids))
            found[k], deviation[k] = medoids, self._deviation(medoids)
        for stride in STRIDES:
            ks = range(2 + stride, top + 1) if stride > 0 else range(top + stride, 1, -1)
            for k in ks:
                medoids = found[k - stride]
                for _ in range(abs(stride)):
                    medoids = self._add(medoids) if stride > 0 else self._drop(medoids)
                if medoids.equal(found[k]):
                    continue
                medoids = self._swap(medoids)
                reached = self._deviation(medoids)
                if reached < deviation[k] - self.tolerance:
                    found[k], deviation[k] = medoids, reached
        return found

    def _deviation(self, medoids: Tensor) -> float:
        return float(self.weights @ self.distances[medoids].amin(dim=0))

    def _add(self, medoids: Tensor) -> Tensor:
        """The medoids and the channel that lowers the deviation most."""
        first = self.distances[medoids].amin(dim=0) * self.weights
        deviation = torch.minimum(self.costs, first[:, None]).sum(dim=0)
        deviation[medoids] = torch.inf
        return torch.cat([medoids, deviation.argmin()[None]]).sort().values

    def _drop(self, medoids: Tensor) -> Tensor:
        """The medoids without the one that costs least to lose."""
        label, first, second = self._two_nearest(medoids)
        loss = torch.zeros(len(medoids), dtype=torch.float64, device=medoids.device)
        loss.index_add_(0, label, second - first)
        kept = torch.arange(len(medoids), device=medoids.device) != loss.argmin()
        return medoids[kept]

    def _swap(self, medoids: Tensor) -> Tensor:
        """Swap medoids for other channels, the best swap first, until no swap pays."""
        num_channels = len(self.distances)
        while True:
            label, first, second = self._two_nearest(medoids)
            # With channel j as an extra medoid, channel i pays near[i, j]; if its own medoid
            # leaves at the same time, it pays far[i, j]. Only the leavers' clusters pay the excess.
            near = torch.minimum(self.costs, first[:, None])
            far = torch.minimum(self.costs, second[:, None])
            change = (near.sum(dim=0) - first.sum()).repeat(len(medoids), 1)
            change.index_add_(0, label, far.sub_(near))
            # Several times faster than argmin on the CPU.
            lowest, best = change.flatten().min(dim=0)
            if float(lowest) >= -self.tolerance:
                return medoids
            leaver, comer = divmod(int(best), num_channels)
            medoids = medoids.clone()
            medoids[leaver] = comer
            medoids = medoids.sort().values

    def _two_nearest(self, medoids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each channel's nearest medoid, what it pays for it, and for the second nearest."""
        to_medoids = self.distances[medoids]
        first, label = to_medoids.min(dim=0)
        to_medoids.scatter_(0, label[None], torch.inf)
        return label, first * self.weights, to_medoids.amin(dim=0) * self.weights
