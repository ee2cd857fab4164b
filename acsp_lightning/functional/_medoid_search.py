"""The search behind the k-medoids sweep: greedy moves along k, swaps at every k.

In NumPy on the CPU: a sweep is thousands of small steps that depend on each other, so what counts is
what a call costs, and that is several times more in torch and more again on a GPU.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.intp]

# Steps along the list of k of the passes after the first. A forward pass alone can be caught in the
# local optimum it inherits from the k before. Coming down and up by several places crosses such optima,
# because the swaps in between act on another number of clusters, and the last pass hands on what the
# two found. Steps of four miss some that steps of eight cross, just below k = N above all, where a
# different pair of channels is already a percent of the deviation.
STRIDES = (-8, 8, -1)

# Where k are left out, each k is so far from the one before that it takes many swaps as it is. With more
# channels than this the first pass is then the only one: the others cost several times as much, for less
# than 0.1 % of the deviation.
WIDE = 256

# Relative to the deviation of the best single medoid. A swap must gain more than the sums kept in
# float64 lose, or equal clusterings could be swapped for each other for ever.
SWAP_TOLERANCE = 1e-12

# Slots whose least cost is kept together: a move touches a few slots, so few blocks are looked at anew.
BLOCK = 16

# Distances that are looked at in one go, few enough to stay in the cache of a core.
CHUNK = 2**17

# Share of the distances below which picking them one by one is faster than computing with all.
SPARSE = 0.15


class MedoidSearch:
    """Local optima of weighted k-medoids on one matrix of distances.

    At every k a medoid is swapped for another channel, the best swap first, as long as that pays.
    """

    def __init__(self, distances: Floats, weights: Floats) -> None:
        self.distances = distances
        self.weights = weights
        self.single = weights @ distances
        self.tolerance = SWAP_TOLERANCE * float(self.single.min())

    def run(self, ks: Sequence[int]) -> dict[int, Integers]:
        """Search some k.

        Args:
            ks: ascending, without repeats, each in 2..N-1, at least one.

        Returns:
            For each k the medoids, ascending, shape (k,).
        """
        top = ks[-1]
        state = self._clustering(self._best_two(), top)
        found: dict[int, Integers] = {}
        deviation: dict[int, float] = {}
        for k in ks:
            state.add(k - len(state.slots))
            state.swap()
            found[k], deviation[k] = state.medoids(), state.deviation()
        for stride in self._strides(ks):
            for start in self._starts(stride, len(ks)):
                # Steps of one chain share their state; the chains do not touch each other.
                state = self._clustering(found[ks[start]], top)
                for place in range(start + stride, len(ks) if stride > 0 else -1, stride):
                    k = ks[place]
                    state.add(k - len(state.slots))
                    state.drop(len(state.slots) - k)
                    if np.array_equal(state.medoids(), found[k]):
                        continue
                    state.swap()
                    reached = state.deviation()
                    if reached < deviation[k] - self.tolerance:
                        found[k], deviation[k] = state.medoids(), reached
                    else:
                        state.become(found[k])
        return found

    def _clustering(self, medoids: Integers, largest: int) -> "Clustering":
        return Clustering(self.distances, self.weights, medoids, largest, self.tolerance)

    def _best_two(self) -> Integers:
        """The best single medoid and the channel that helps it most."""
        one = int(self.single.argmin())
        deviation = self.weights @ np.minimum(self.distances, self.distances[:, one, None])
        deviation[one] = np.inf
        return np.array([one, deviation.argmin()])

    def _strides(self, ks: Sequence[int]) -> tuple[int, ...]:
        if len(ks) == ks[-1] - 1:
            return STRIDES
        # The way up costs an addition for each k that is left out, and the way down little.
        narrow = len(self.distances) <= WIDE
        return tuple(stride for stride in STRIDES if stride < 0) if narrow else ()

    @staticmethod
    def _starts(stride: int, count: int) -> range:
        """First place of each chain of steps that stays among ``count`` places."""
        if stride > 0:
            return range(min(stride, count - stride))
        return range(count - 1, max(count - 1 + stride, -1 - stride), -1)


class Clustering:
    """k medoids that can be exchanged cheaply, and what every exchange would gain.

    The sums of FastPAM1 are kept and corrected by those channels alone whose nearest or second nearest
    medoid a move changes, about N / k of them, and of these only where another channel lies closer than
    the second nearest medoid, about N / k times as well.

    Attributes:
        slots: medoids in the order they came, shape (k,).
        label: slot of every channel's nearest medoid, shape (N,).
        runner_up: slot of its second nearest.
        first: distance to the nearest medoid.
        second: distance to the second nearest.
        gain: by how much the deviation falls if channel j becomes an extra medoid, shape (N,).
        saved: what j spares the members of a slot, beyond that, should the medoid of the slot leave,
            (slots, N); only the first k rows are in use, the others are zero.
        lowest: least price, over the slots of a block, of having a medoid leave as j comes,
            (blocks, N); to be made anew where ``stale``.

    References:
        E. Schubert, P. Rousseeuw, "Fast and eager k-medoids clustering", 2021.
    """

    def __init__(
        self, distances: Floats, weights: Floats, medoids: Integers, largest: int, tolerance: float
    ) -> None:
        num_channels, blocks = len(distances), -(-largest // BLOCK)
        self.distances = distances
        self.weights = weights
        self.tolerance = tolerance
        self.slots = medoids.copy()
        self.label = np.zeros(num_channels, dtype=np.intp)
        self.runner_up = np.zeros(num_channels, dtype=np.intp)
        # No distance at all yet is nothing entered in the sums.
        self.first, self.second, self.gain = np.zeros((3, num_channels))
        self.saved = np.zeros((blocks * BLOCK, num_channels))
        self.lowest = np.empty((blocks, num_channels))
        self.stale = np.ones(blocks, dtype=bool)
        self._reassign(np.arange(num_channels))

    def medoids(self) -> Integers:
        return np.sort(self.slots)

    def deviation(self) -> float:
        return float(self.weights @ self.first)

    def add(self, number: int) -> None:
        """Add the channels that lower the deviation most, one by one, the first of those that tie."""
        if number <= 0:
            return
        k = len(self.slots)
        first, bound = self.first, self.gain.copy()
        bound[self.slots] = -np.inf
        known = np.ones(len(bound), dtype=bool)
        comers: list[int] = []
        while True:
            best = int((bound >= bound.max() - self.tolerance).argmax())
            # A medoid more can only lower what the next one gains: an old gain is a bound.
            if not known[best]:
                bound[best] = self.weights @ np.maximum(first - self.distances[best], 0.0)
                known[best] = True
                continue
            comers.append(best)
            if len(comers) == number:
                break
            bound[best] = -np.inf
            first = np.minimum(first, self.distances[best])
            known[:] = False
        closer = self.distances[comers].min(axis=0) < self.second
        self.slots = np.append(self.slots, comers)
        self.stale[k // BLOCK : -(-(k + number) // BLOCK)] = True
        self._reassign(np.flatnonzero(closer))

    def drop(self, number: int) -> None:
        """Drop the medoids that cost least to lose, each judged as if it left alone."""
        if number <= 0:
            return
        k = len(self.slots)
        order = self._losses(k).argsort(kind="stable")
        leavers, kept = order[:number], np.sort(order[number:])
        self._reassign(self._served_by(leavers), kept)
        # The last rows move into the gaps, so that few of them are copied.
        gaps, last = leavers[leavers < k - number], kept[kept >= k - number]
        self.saved[gaps] = self.saved[last]
        self.saved[k - number : k] = 0.0
        self.slots[gaps] = self.slots[last]
        self.slots = self.slots[: k - number]
        renamed = np.arange(k)
        renamed[last] = gaps
        self.label, self.runner_up = renamed[self.label], renamed[self.runner_up]
        self.stale[gaps // BLOCK] = True
        self.stale[(k - number) // BLOCK :] = True

    def swap(self) -> None:
        """Swap medoids for other channels, the best swap first, until none gains the tolerance."""
        before = self.deviation()
        while True:
            blocks = -(-len(self.slots) // BLOCK)
            losses = self._losses(blocks * BLOCK)
            losses[len(self.slots) :] = np.inf
            for block in np.flatnonzero(self.stale[:blocks]).tolist():
                rows = slice(block * BLOCK, (block + 1) * BLOCK)
                (losses[rows, None] - self.saved[rows]).min(axis=0, out=self.lowest[block])
            self.stale[:blocks] = False
            price = self.lowest[:blocks].min(axis=0) - self.gain
            price[self.slots] = np.inf
            comer = int(price.argmin())
            if price[comer] >= -self.tolerance:
                return
            first = BLOCK * int(self.lowest[:blocks, comer].argmin())
            rows = slice(first, first + BLOCK)
            leaver = first + int((losses[rows] - self.saved[rows, comer]).argmin())
            self._exchange(np.array([leaver]), np.array([comer]))
            reached = self.deviation()
            # The sums say that it gained; should rounding ever make them wrong, this ends it.
            if reached >= before:
                return
            before = reached

    def become(self, medoids: Integers) -> None:
        """Take these medoids instead, as many as there are."""
        wanted = np.zeros(len(self.label), dtype=bool)
        wanted[medoids] = True
        leavers = np.flatnonzero(~wanted[self.slots])
        wanted[self.slots] = False
        if len(leavers):
            self._exchange(leavers, np.flatnonzero(wanted))

    def _losses(self, length: int) -> Floats:
        """By how much the deviation rises if the medoid of a slot leaves; zeros up to ``length``."""
        losses = np.bincount(self.label, self.weights * (self.second - self.first), length)
        # A sum of floats already, which the type of bincount does not say.
        return losses.astype(np.float64, copy=False)

    def _exchange(self, leavers: Integers, comers: Integers) -> None:
        """Put the channels ``comers`` into the slots ``leavers``."""
        moved = self.distances[comers].min(axis=0) < self.second
        moved[self._served_by(leavers)] = True
        self.slots[leavers] = comers
        self._reassign(np.flatnonzero(moved))

    def _served_by(self, slots: Integers) -> Integers:
        """The channels that have one of the slots nearest or second nearest."""
        chosen = np.zeros(len(self.slots), dtype=bool)
        chosen[slots] = True
        return np.flatnonzero(chosen[self.label] | chosen[self.runner_up])

    def _reassign(self, channels: Integers, slots: Integers | None = None) -> None:
        """Give channels their two nearest medoids, of all slots or of some, and correct the sums."""
        slots = np.arange(len(self.slots)) if slots is None else slots
        step = max(1, CHUNK // len(self.label))
        for start in range(0, len(channels), step):
            self._reassign_few(channels[start : start + step], slots)

    def _reassign_few(self, channels: Integers, slots: Integers) -> None:
        distances = self.distances[channels]
        to_medoids = distances.take(self.slots[slots], axis=1)
        everyone = np.arange(len(channels))
        nearest = to_medoids.argmin(axis=1)
        first = to_medoids[everyone, nearest]
        to_medoids[everyone, nearest] = np.inf
        second_nearest = to_medoids.argmin(axis=1)
        second = to_medoids[everyone, second_nearest]
        label = slots[nearest]
        self._correct(channels, distances, label, first, second)
        self.stale[self.label[channels] // BLOCK] = True
        self.stale[label // BLOCK] = True
        self.first[channels], self.second[channels] = first, second
        self.label[channels], self.runner_up[channels] = label, slots[second_nearest]

    def _correct(
        self, channels: Integers, distances: Floats, label: Integers, first: Floats, second: Floats
    ) -> None:
        """Take channels out of the sums and enter them again as they will be."""
        weight = self.weights[channels]
        before = (self.label[channels], self.first[channels], self.second[channels], -weight)
        after = (label, first, second, weight)
        near = distances < np.maximum(second, self.second[channels])[:, None]
        if np.count_nonzero(near) > SPARSE * near.size:
            for slot, first, second, weight in (before, after):
                self._enter_all(distances, slot, first, second, weight)
            return
        pairs = np.flatnonzero(near)
        row = pairs // len(self.label)
        column = pairs - row * len(self.label)
        distance = distances.ravel()[pairs]
        for slot, first, second, weight in (before, after):
            self._enter_pairs(column, distance, slot[row], first[row], second[row], weight[row])

    def _enter_all(
        self, distances: Floats, slot: Integers, first: Floats, second: Floats, weight: Floats
    ) -> None:
        """Add M channels to the sums, distances (M, N)."""
        members = np.zeros((len(self.slots), len(slot)))
        members[slot, np.arange(len(slot))] = weight
        self.gain += weight @ np.maximum(first[:, None] - distances, 0.0)
        spared = second[:, None] - np.maximum(first[:, None], distances)
        self.saved[: len(members)] += members @ np.maximum(spared, 0.0, out=spared)

    def _enter_pairs(
        self,
        column: Integers,
        distance: Floats,
        slot: Integers,
        first: Floats,
        second: Floats,
        weight: Floats,
    ) -> None:
        """Add pairs of a channel and a ``column`` to the sums, all arguments of one shape."""
        np.add.at(self.gain, column, weight * np.maximum(first - distance, 0.0))
        spared = np.maximum(second - np.maximum(first, distance), 0.0)
        np.add.at(self.saved.reshape(-1), slot * len(self.label) + column, weight * spared)
