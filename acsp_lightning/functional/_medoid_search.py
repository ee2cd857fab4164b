"""The search behind the k-medoids sweep: greedy steps from one k to the next, swaps at every k.

In NumPy on the CPU: a sweep is thousands of small dependent steps, so the overhead of a call
dominates, which is several times higher in torch and higher still on a GPU.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.intp]

# Strides along the list of k, in the passes after the first. An upward pass alone can be trapped in
# the local optimum inherited from the previous k. Passes down and up in larger strides escape such
# optima, because the swaps in between act on another number of clusters; the last pass propagates
# what they found. Strides of four miss some optima that strides of eight escape, mostly just below
# k = N, where another pair of channels already changes the deviation by a percent.
STRIDES = (-8, 8, -1)

# If some k are left out, each k is far from the previous one and takes many swaps anyway. With more
# channels than this, only the first pass is run then: the others cost several times as much and
# lower the deviation by less than 0.1 %.
WIDE = 256

# Relative to the deviation of the best single medoid. A swap must gain more than the rounding error
# of the float64 sums, or equal clusterings could be swapped forever.
SWAP_TOLERANCE = 1e-12

# Slots that share one cached minimum: a move touches a few slots, so few blocks are recomputed.
BLOCK = 16

# Distances processed at once, few enough to fit in the cache of a core.
CHUNK = 2**17

# If a smaller share of the distances is needed, indexing them is faster than computing with all.
SPARSE = 0.15


class MedoidSearch:
    """Local optima of weighted k-medoids on one distance matrix.

    At every k, medoids are swapped for other channels, best swap first, until no swap improves.
    """

    def __init__(self, distances: Floats, weights: Floats) -> None:
        self.distances = distances
        self.weights = weights
        self.single = weights @ distances
        self.tolerance = SWAP_TOLERANCE * float(self.single.min())

    def run(self, ks: Sequence[int]) -> dict[int, Integers]:
        """Cluster for every k in ``ks``.

        Args:
            ks: ascending, without repeats, each in 2..N-1, at least one.

        Returns:
            The medoids for each k, ascending, shape (k,).
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
                # The steps of a chain share one state; the chains are independent.
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
        """The best single medoid, and the best second medoid beside it."""
        one = int(self.single.argmin())
        deviation = self.weights @ np.minimum(self.distances, self.distances[:, one, None])
        deviation[one] = np.inf
        return np.array([one, deviation.argmin()])

    def _strides(self, ks: Sequence[int]) -> tuple[int, ...]:
        if len(ks) == ks[-1] - 1:
            return STRIDES
        # Upward, every k left out costs one addition; downward is cheap.
        narrow = len(self.distances) <= WIDE
        return tuple(stride for stride in STRIDES if stride < 0) if narrow else ()

    @staticmethod
    def _starts(stride: int, count: int) -> range:
        """First index of each chain of steps within ``count`` values of k."""
        if stride > 0:
            return range(min(stride, count - stride))
        return range(count - 1, max(count - 1 + stride, -1 - stride), -1)


class Clustering:
    """k medoids with cached sums, from which the gain of every swap is computed cheaply.

    The sums of FastPAM1 are updated only for the channels whose nearest or second nearest medoid a
    move changes, about N / k of them, and for each of these only at the channels closer than its
    second nearest medoid, again about N / k.

    Attributes:
        slots: the medoids, unordered, shape (k,).
        label: slot of every channel's nearest medoid, shape (N,).
        runner_up: slot of its second nearest medoid.
        first: distance to the nearest medoid.
        second: distance to the second nearest.
        gain: by how much the deviation falls if channel j becomes an extra medoid, shape (N,).
        saved: the part of the loss of removing a slot's medoid that j makes up for, beyond
            ``gain``, (slots, N); only the first k rows are in use, the others are zero.
        lowest: lowest cost, over the slots of a block, of removing a medoid when j is added,
            (blocks, N); to be recomputed where ``stale``.

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
        # With all distances zero, nothing is in the sums yet.
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
        """Add, one by one, the channels that lower the deviation most; ties go to the first."""
        if number <= 0:
            return
        k = len(self.slots)
        first, bound = self.first, self.gain.copy()
        bound[self.slots] = -np.inf
        known = np.ones(len(bound), dtype=bool)
        added: list[int] = []
        while True:
            best = int((bound >= bound.max() - self.tolerance).argmax())
            # Adding a medoid can only lower the next gains: an old gain is an upper bound.
            if not known[best]:
                bound[best] = self.weights @ np.maximum(first - self.distances[best], 0.0)
                known[best] = True
                continue
            added.append(best)
            if len(added) == number:
                break
            bound[best] = -np.inf
            first = np.minimum(first, self.distances[best])
            known[:] = False
        closer = self.distances[added].min(axis=0) < self.second
        self.slots = np.append(self.slots, added)
        self.stale[k // BLOCK : -(-(k + number) // BLOCK)] = True
        self._reassign(np.flatnonzero(closer))

    def drop(self, number: int) -> None:
        """Remove the medoids of least loss, each computed as if it alone were removed."""
        if number <= 0:
            return
        k = len(self.slots)
        order = self._losses(k).argsort(kind="stable")
        removed, kept = order[:number], np.sort(order[number:])
        self._reassign(self._served_by(removed), kept)
        # The last rows move into the gaps, so that few of them are copied.
        gaps, last = removed[removed < k - number], kept[kept >= k - number]
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
        """Swap medoids for other channels, best swap first, until none gains more than the tolerance."""
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
            candidate = int(price.argmin())
            if price[candidate] >= -self.tolerance:
                return
            first = BLOCK * int(self.lowest[:blocks, candidate].argmin())
            rows = slice(first, first + BLOCK)
            slot = first + int((losses[rows] - self.saved[rows, candidate]).argmin())
            self._exchange(np.array([slot]), np.array([candidate]))
            reached = self.deviation()
            # The sums predicted a gain; if rounding ever makes them wrong, this ends the loop.
            if reached >= before:
                return
            before = reached

    def become(self, medoids: Integers) -> None:
        """Replace the medoids by an equal number of given ones."""
        wanted = np.zeros(len(self.label), dtype=bool)
        wanted[medoids] = True
        removed = np.flatnonzero(~wanted[self.slots])
        wanted[self.slots] = False
        if len(removed):
            self._exchange(removed, np.flatnonzero(wanted))

    def _losses(self, length: int) -> Floats:
        """Rise of the deviation if the medoid of a slot is removed; zero-padded to ``length``."""
        losses = np.bincount(self.label, self.weights * (self.second - self.first), length)
        # Already float64, which the return type of bincount does not say.
        return losses.astype(np.float64, copy=False)

    def _exchange(self, removed: Integers, added: Integers) -> None:
        """Replace the medoids in the slots ``removed`` by the channels ``added``."""
        moved = self.distances[added].min(axis=0) < self.second
        moved[self._served_by(removed)] = True
        self.slots[removed] = added
        self._reassign(np.flatnonzero(moved))

    def _served_by(self, slots: Integers) -> Integers:
        """Channels whose nearest or second nearest medoid is in one of the slots."""
        chosen = np.zeros(len(self.slots), dtype=bool)
        chosen[slots] = True
        return np.flatnonzero(chosen[self.label] | chosen[self.runner_up])

    def _reassign(self, channels: Integers, slots: Integers | None = None) -> None:
        """Recompute the two nearest medoids of channels, among all or some slots; update the sums."""
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
        """Subtract the old terms of channels from the sums and add the new ones."""
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
        """Add single pairs of channels to the sums; all arguments have one shape."""
        np.add.at(self.gain, column, weight * np.maximum(first - distance, 0.0))
        spared = np.maximum(second - np.maximum(first, distance), 0.0)
        np.add.at(self.saved.reshape(-1), slot * len(self.label) + column, weight * spared)
