"""The search behind the k-medoids sweep: greedy moves along k, swaps at every k."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Steps along the list of k of the passes after the first. A forward pass alone can be caught in the
# local optimum it inherits from the k before. Coming down and up by four places crosses such optima,
# because the swaps in between act on another number of clusters, and the last pass hands on what the
# two found.
STRIDES = (-4, 4, -1)

# Relative to the deviation of the best single medoid. A swap must gain more than the sums kept in
# float64 lose, or equal clusterings could be swapped for each other for ever.
SWAP_TOLERANCE = 1e-12


class MedoidSearch:
    """Local optima of weighted k-medoids on one matrix of distances.

    At every k a medoid is swapped for another channel, the best swap first, as long as that pays.
    """

    def __init__(self, distances: Tensor, weights: Tensor) -> None:
        # Row i is what channel i pays for each medoid it could have, so no sum below needs weights.
        self.costs = distances * weights[:, None]
        self.single = self.costs.sum(dim=0)
        self.tolerance = SWAP_TOLERANCE * self.single.min().item()

    def run(self, ks: Sequence[int]) -> dict[int, Tensor]:
        """Search some k.

        Args:
            ks: ascending, without repeats, each in 2..N-1, at least one.

        Returns:
            For each k the medoids, ascending, shape (k,).
        """
        top = ks[-1]
        state = Clustering(self.costs, self._best_two(), top, self.tolerance)
        found: dict[int, Tensor] = {}
        deviation: dict[int, float] = {}
        for k in ks:
            while len(state.slots) < k:
                state.add()
            state.swap()
            found[k], deviation[k] = state.medoids(), state.deviation()
        # Where k are left out, the way up costs an addition for each of them, and the way down none.
        strides = STRIDES if len(ks) == top - 1 else [stride for stride in STRIDES if stride < 0]
        for stride in strides:
            for start in self._starts(stride, len(ks)):
                # Steps of one chain share their state; the chains do not touch each other.
                state = Clustering(self.costs, found[ks[start]], top, self.tolerance)
                for place in range(start + stride, len(ks) if stride > 0 else -1, stride):
                    k = ks[place]
                    while len(state.slots) < k:
                        state.add()
                    if len(state.slots) > k:
                        state.drop(len(state.slots) - k)
                    if state.medoids().equal(found[k]):
                        continue
                    state.swap()
                    reached = state.deviation()
                    if reached < deviation[k] - self.tolerance:
                        found[k], deviation[k] = state.medoids(), reached
                    else:
                        state.become(found[k])
        return found

    def _best_two(self) -> Tensor:
        """The best single medoid and the channel that helps it most."""
        one = self.single.argmin()
        deviation = torch.minimum(self.costs, self.costs[:, one, None]).sum(dim=0)
        deviation[one] = torch.inf
        return torch.stack([one, deviation.argmin()])

    @staticmethod
    def _starts(stride: int, count: int) -> range:
        """First place of each chain of steps that stays among ``count`` places."""
        if stride > 0:
            return range(min(stride, count - stride))
        return range(count - 1, max(count - 1 + stride, -1 - stride), -1)


class Clustering:
    """k medoids that can be exchanged cheaply, and what every exchange would gain.

    The sums of FastPAM1 are kept and corrected by those channels alone whose nearest or second
    nearest medoid a move changes. These are about N / k, so a move costs O(N^2 / k); the best swap
    is found in O(k N).

    Attributes:
        slots: medoids in the order they came, shape (k,).
        label: slot of every channel's nearest medoid, shape (N,).
        runner_up: slot of its second nearest.
        first: what the channel pays for its nearest medoid.
        second: what it pays for its second nearest.
        extra: deviation with channel j as an extra medoid, shape (N,).
        excess: what the members of a slot pay beyond that if its medoid leaves as j comes,
            (slots, N); only the first k rows are in use.

    References:
        E. Schubert, P. Rousseeuw, "Fast and eager k-medoids clustering", 2021.
    """

    def __init__(self, costs: Tensor, medoids: Tensor, largest: int, tolerance: float) -> None:
        num_channels = len(costs)
        self.costs = costs
        self.tolerance = tolerance
        self.slots = medoids
        self.label = torch.zeros(num_channels, dtype=torch.int64, device=costs.device)
        self.runner_up = torch.zeros_like(self.label)
        # Nothing paid yet is nothing entered in the sums.
        self.first, self.second, self.extra = costs.new_zeros(3, num_channels)
        self.excess = costs.new_zeros(largest, num_channels)
        everyone = torch.arange(num_channels, device=costs.device)
        self._reassign(everyone, everyone[: len(medoids)])

    def medoids(self) -> Tensor:
        return self.slots.sort().values

    def deviation(self) -> float:
        return float(self.first.sum())

    def add(self) -> None:
        """Add the channel that lowers the deviation most, the first of those that tie."""
        extra = self.extra.index_fill(0, self.slots, torch.inf)
        comer = (extra <= extra.amin() + self.tolerance).to(torch.uint8).argmax()[None]
        moved = (self.costs.index_select(1, comer)[:, 0] < self.second).nonzero()[:, 0]
        self.excess[len(self.slots)] = 0.0
        self.slots = torch.cat([self.slots, comer])
        self._reassign(moved)

    def drop(self, number: int) -> None:
        """Drop the medoids that cost least to lose, each judged as if it left alone."""
        k = len(self.slots)
        loss = self.costs.new_zeros(k).index_add_(0, self.label, self.second - self.first)
        order = loss.argsort(stable=True)
        leavers, kept = order[:number], order[number:].sort().values
        self._reassign(self._served_by(leavers).nonzero()[:, 0], kept)
        # The last rows move into the gaps, so that few of them are copied.
        gaps, last = leavers[leavers < k - number], kept[kept >= k - number]
        self.excess[gaps] = self.excess[last]
        self.slots = self.slots.index_copy(0, gaps, self.slots[last])[: k - number]
        renamed = torch.arange(k, device=order.device).index_copy(0, last, gaps)
        self.label, self.runner_up = renamed[self.label], renamed[self.runner_up]

    def swap(self) -> None:
        """Swap medoids for other channels, the best swap first, until none gains the tolerance."""
        before = self.deviation()
        while True:
            # Two passes are several times faster than a minimum with indices on the CPU.
            excess = self.excess[: len(self.slots)]
            extra = self.extra.index_fill(0, self.slots, torch.inf)
            lowest, comer = extra.add_(excess.amin(dim=0)).min(dim=0)
            if float(lowest) >= before - self.tolerance:
                return
            self._exchange(excess[:, comer].argmin()[None], comer[None])
            reached = self.deviation()
            # The sums say that it gained; should rounding ever make them wrong, this ends it.
            if reached >= before:
                return
            before = reached

    def become(self, medoids: Tensor) -> None:
        """Take these medoids instead, as many as there are."""
        wanted = torch.zeros_like(self.label, dtype=torch.bool).index_fill_(0, medoids, True)
        leavers = (~wanted[self.slots]).nonzero()[:, 0]
        comers = wanted.index_fill_(0, self.slots, False).nonzero()[:, 0]
        if len(leavers):
            self._exchange(leavers, comers)

    def _exchange(self, leavers: Tensor, comers: Tensor) -> None:
        """Put the channels ``comers`` into the slots ``leavers``."""
        closer = self.costs.index_select(1, comers).amin(dim=1) < self.second
        moved = (closer | self._served_by(leavers)).nonzero()[:, 0]
        self.slots = self.slots.index_copy(0, leavers, comers)
        self._reassign(moved)

    def _served_by(self, slots: Tensor) -> Tensor:
        """Which channels have one of the slots nearest or second nearest."""
        chosen = torch.zeros_like(self.slots, dtype=torch.bool).index_fill_(0, slots, True)
        return chosen[self.label] | chosen[self.runner_up]

    def _reassign(self, channels: Tensor, slots: Tensor | None = None) -> None:
        """Give channels their two nearest medoids, of all slots or of some, and correct the sums."""
        costs = self.costs.index_select(0, channels)
        self._enter(channels, costs, -1)
        medoids = self.slots if slots is None else self.slots[slots]
        paid, nearest = costs.index_select(1, medoids).topk(2, largest=False)
        nearest = nearest if slots is None else slots[nearest]
        self.first[channels], self.second[channels] = paid.unbind(dim=1)
        self.label[channels], self.runner_up[channels] = nearest.unbind(dim=1)
        self._enter(channels, costs, 1)

    def _enter(self, channels: Tensor, costs: Tensor, sign: int) -> None:
        """Enter channels in the sums (sign 1) or take them out again (sign -1)."""
        near = torch.minimum(costs, self.first[channels, None])
        far = torch.minimum(costs, self.second[channels, None])
        self.extra.add_(near.sum(dim=0), alpha=sign)
        self.excess.index_add_(0, self.label[channels], far.sub_(near), alpha=sign)
