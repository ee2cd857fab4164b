"""k-medoids for a range of k, and the two curves over k on which a knee is located."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acsp_lightning.functional._medoid_search import Floats, Integers, MedoidSearch


@dataclass(frozen=True, slots=True)
class KMedoidsSweep:
    """Clusterings of the same N channels into k = ks[0], ks[1], ... clusters.

    Attributes:
        ks: numbers of clusters, ascending, int64, shape (K,), on the CPU.
        medoids: for each k, the medoids as channel indices, ascending, int64, shape (k,).
        labels: for each k, the position in ``medoids`` of every channel's medoid, int64, shape (K,
            N). A medoid's label points to itself.
        deviation: weighted sum of the distances to the medoids, float64, shape (K,).
    """

    ks: Tensor
    medoids: tuple[Tensor, ...]
    labels: Tensor
    deviation: Tensor


def sweep_k_medoids(
    distances: Tensor, weights: Tensor | None = None, ks: Sequence[int] | None = None
) -> KMedoidsSweep:
    """Cluster N channels around k of them, for every k, minimising sum_i w_i d(i, medoid of i).

    Every k starts from the clusterings of neighbouring k and is improved by swaps to a local
    optimum, as in ``MedoidSearch``. Deterministic: equal input, equal result. The search runs on
    the CPU; distances on another device are copied there, and the clusterings back.

    Args:
        distances: symmetric, non-negative, zero diagonal, shape (N, N).
        weights: importance of each channel, non-negative, shape (N,); None: all equal.
        ks: numbers of clusters, each in 2..N-1; None: all of them, none for N <= 2. A shorter list
            costs less, since the others are skipped, and may for the same reason end in slightly
            different local optima.

    Returns:
        The clusterings, in ascending order of k, on the device of the distances (``ks`` on the
        CPU). Ties, as between duplicates, go to the first channel.

    Raises:
        ValueError: if the distances, the weights or ``ks`` are not as described.
    """
    distances = _checked_distances(distances)
    weights = _checked_weights(weights, distances)
    num_channels = len(distances)
    wanted = range(2, num_channels) if ks is None else sorted(set(ks))
    outside = [k for k in wanted if not 2 <= k < num_channels]
    if outside:
        raise ValueError(
            f"ks contains {outside[0]}; {num_channels} channels can be clustered into "
            f"2 to {num_channels - 1} clusters: leave the others out"
        )
    matrix, importance = (tensor.detach().cpu().numpy() for tensor in (distances, weights))
    found = MedoidSearch(matrix, importance).run(wanted) if wanted else {}
    medoids = [found[k] for k in wanted]
    labels, deviation = _assigned(matrix, importance, medoids)
    return KMedoidsSweep(
        ks=torch.tensor(wanted, dtype=torch.int64),
        medoids=tuple(torch.from_numpy(m).to(distances.device, torch.int64) for m in medoids),
        labels=torch.from_numpy(labels).to(distances.device, torch.int64),
        deviation=torch.from_numpy(deviation).to(distances.device),
    )


def mean_simplified_silhouette(distances: Tensor, sweep: KMedoidsSweep) -> Tensor:
    """Mean simplified silhouette (MSS) for every k of a sweep.

    With a the distance to its own medoid and b the *mean* distance to the other medoids, a channel
    scores (b - a) / max(a, b). Not the usual simplified silhouette, which takes the *nearest* other
    medoid for b. Medoids score 1, so MSS would be 1 at k = N; elsewhere a = 0 < b scores 1. If all
    medoids coincide with the channel, a = b = 0 scores 0.

    Args:
        distances: shape (N, N), the ones the sweep was computed from.
        sweep: clusterings for K values of k.

    Returns:
        Float64, shape (K,), in [0, 1]; the channels count equally, whatever the sweep's weights.

    References:
        D. Levin, G. Singer, arXiv 2505.13225.
    """
    distances = distances.to(torch.float64)
    chosen = distances.new_zeros(sweep.labels.shape)
    nearest = torch.zeros_like(sweep.labels)
    for row, medoids in enumerate(sweep.medoids):
        chosen[row, medoids] = 1.0
        nearest[row] = medoids[sweep.labels[row]]
    own = distances.gather(0, nearest)
    others = (chosen @ distances - own) / (sweep.ks.to(distances) - 1)[:, None]
    larger = torch.maximum(own, others)
    score = torch.where(larger > 0, (others - own) / larger, 0.0)
    return torch.where(chosen > 0, 1.0, score).mean(dim=1)


def coverage(distances: Tensor, sweep: KMedoidsSweep, weights: Tensor | None = None) -> Tensor:
    """Share of the weighted deviation from one medoid that k medoids remove.

    Coverage(k) = 1 - deviation(k) / deviation(1), where the one medoid is the best single one.

    Args:
        distances: shape (N, N), the ones the sweep was computed from.
        sweep: clusterings for K values of k.
        weights: the ones the sweep was computed with, shape (N,); None: all equal.

    Returns:
        Float64, shape (K,), in [0, 1]. All 1 if one medoid leaves no deviation, i.e. if every
        channel of positive weight is a copy of one channel.

    Raises:
        ValueError: if the distances or the weights are invalid, as in ``sweep_k_medoids``.
    """
    distances = _checked_distances(distances)
    weights = _checked_weights(weights, distances)
    single = (distances @ weights).min()
    covered = 1 - sweep.deviation / single
    return torch.where(single > 0, covered, 1.0).clamp(0.0, 1.0)


def _assigned(
    distances: Floats, weights: Floats, clusterings: Sequence[Integers]
) -> tuple[Integers, Floats]:
    """Labels, (K, N), and deviations, (K,), of K clusterings, each given by ascending medoids.

    Of medoids at equal distance the first is taken. Consecutive clusterings share most medoids, so
    each is derived from the one before: O(N) for a new medoid, O(k) for a channel that has lost its
    medoid.
    """
    num_channels = len(distances)
    labels = np.zeros((len(clusterings), num_channels), dtype=np.intp)
    deviation = np.zeros(len(clusterings))
    own = np.zeros(num_channels, dtype=np.intp)
    present = np.zeros(num_channels, dtype=bool)
    for row, medoids in enumerate(clusterings):
        before, present = present, np.zeros(num_channels, dtype=bool)
        present[medoids] = True
        lost = np.flatnonzero(~present[own])
        own[lost] = medoids[distances[lost[:, None], medoids].argmin(axis=1)]
        paid = distances[own, np.arange(num_channels)]
        added = np.flatnonzero(present & ~before)
        if len(added):
            offered = distances[added].min(axis=0)
            candidate = added[distances[added].argmin(axis=0)]
            better = (offered < paid) | ((offered == paid) & (candidate < own))
            own, paid = np.where(better, candidate, own), np.minimum(offered, paid)
        labels[row] = np.searchsorted(medoids, own)
        # Of two medoids at distance zero each must still be its own.
        labels[row, medoids] = np.arange(len(medoids))
        deviation[row] = weights @ paid
    return labels, deviation


def _checked_distances(distances: Tensor) -> Tensor:
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or not len(distances):
        raise ValueError(
            f"distances have shape {tuple(distances.shape)}; they must be (N, N) with N >= 1"
        )
    distances = distances.to(torch.float64)
    if not bool((distances.isfinite() & (distances >= 0)).all()):
        raise ValueError("distances contain negative or non-finite values; all must be >= 0")
    if not torch.equal(distances, distances.T) or bool(distances.diagonal().any()):
        raise ValueError(
            "distances are not symmetric with a zero diagonal; "
            "average them with their transpose and clear the diagonal"
        )
    return distances


def _checked_weights(weights: Tensor | None, distances: Tensor) -> Tensor:
    num_channels = len(distances)
    if weights is None:
        return distances.new_ones(num_channels)
    if weights.shape != (num_channels,):
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}; "
            f"they must be ({num_channels},), one for each channel"
        )
    weights = weights.to(distances)
    if not bool((weights.isfinite() & (weights >= 0)).all()) or not bool(weights.any()):
        raise ValueError(
            "weights contain negative or non-finite values or are all zero; they must be finite, "
            ">= 0 and somewhere > 0: pass None where no channel matters more than another"
        )
    return weights
