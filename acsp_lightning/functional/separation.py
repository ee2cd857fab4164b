"""How well each channel separates each pair of classes, and the distances between channels in that."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from acsp_lightning.functional._class_pairs import ClassPairs
from acsp_lightning.functional._differences import is_long, squared_distances
from acsp_lightning.functional.moments import ClassMoments

# A hundredth of the pairs of 1000 classes; with fewer, the overhead of each part would dominate.
CLASSES_TO_TRY = 100


def jeffries_matusita(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """Jeffries-Matusita distance between two univariate normals, element by element.

    JM = 2 (1 - exp(-B)), with B the Bhattacharyya distance, whose mean term is
    (mean_a - mean_b)^2 / (4 (var_a + var_b)). This is the squared convention, in [0, 2]; some
    texts take its square root. exp(-B) has a closed form without logarithms, which is used here.

    Args:
        mean_a: means of one class, any shape.
        var_a: its variances, positive; for moments, the variance floors ensure that.
        mean_b: means of the other class.
        var_b: its variances, positive.

    Returns:
        JM in [0, 2], in the shape the arguments broadcast to; 0 for equal moments.
    """
    var_sum = var_a + var_b
    overlap = torch.sqrt(2 * torch.sqrt(var_a) * torch.sqrt(var_b) / var_sum)
    overlap = overlap * torch.exp(-((mean_a - mean_b) ** 2) / (4 * var_sum))
    return (2 - 2 * overlap).clamp(min=0)


@dataclass(frozen=True, slots=True)
class Separation:
    """Distances between channels in what they separate, and what they were computed from.

    Attributes:
        distances: Euclidean distances between the channels' separability vectors, float64, (N, N),
            symmetric, zero diagonal. With sampled class pairs, scaled to all of them.
        classes: classes with two samples or more, of which every two are a pair.
        class_pairs: number of class pairs compared.
        sampling_error: root mean square of the standard errors of the distances, as a share of their
            median, estimated from two halves of the sample; 0 if all pairs were compared.
    """

    distances: Tensor
    classes: int
    class_pairs: int
    sampling_error: float


def separability_vectors(moments: ClassMoments) -> Tensor:
    """JM of every channel for every pair of classes and every position, stored in full.

    For notebooks and small layers; ``separation_distances`` does not need it.

    Args:
        moments: moments of N channels at P positions.

    Returns:
        Float64 matrix, shape (N, L * P), values in [0, 2]. Pairs (a, b), a < b, of the classes that
        have two samples run in lexicographic order, with the positions of one pair adjacent.

    Raises:
        ValueError: as ``separation_distances``.
    """
    everything = moments.mean.numel()  # all positions of a pair adjacent
    blocks = [block.sub(1).mul_(-2).clamp_(min=0) for block in ClassPairs.of(moments).blocks(everything)]
    return torch.cat(blocks).permute(2, 0, 1).flatten(start_dim=1)


def mean_separability(moments: ClassMoments) -> Tensor:
    """Mean JM of every channel over class pairs and positions, without storing the vectors.

    Args:
        moments: moments of N channels at P positions.

    Returns:
        Float64, shape (N,), in [0, 2]; 0 for a constant channel.

    Raises:
        ValueError: as ``separation_distances``.
    """
    pairs = ClassPairs.of(moments)
    total = moments.mean.new_zeros(moments.num_channels)
    for block in pairs.blocks(pairs.room):
        total += block.sub_(1).sum(dim=(0, 1))
    return (total * (-2 / (pairs.number * moments.num_positions))).clamp_(min=0)


def separation_distances(moments: ClassMoments) -> Tensor:
    """Euclidean distances between the channels' separability vectors, over all pairs of classes.

    Args:
        moments: as in :func:`compare_channels`.

    Returns:
        Float64, shape (N, N), symmetric, zero diagonal, on the moments' device. Channels with equal
        moments are at distance 0.

    Raises:
        ValueError: as :func:`compare_channels`.
    """
    return compare_channels(moments).distances


def compare_channels(moments: ClassMoments, class_pairs: int | None = None, seed: int = 0) -> Separation:
    """Distances between channels in what they separate, over all class pairs or a random sample.

    Classes with fewer than two samples are left out. The sum over class pairs is computed block by
    block; the vectors themselves are never stored. Memory: ten times N * N, eight times the moments,
    and on the CPU 8,192 * N for each thread. Time: one exponential for each channel, position and
    class pair; half of the matrix product of (N, L * P) with its transpose, on accelerators all of it;
    and L * P differences for each pair of nearly equal channels. From 100,000 pairs and positions
    on, exponentials and products are in float32, and again in float64 for channels that are close to
    others: distances are within 1e-5 of those that float64 alone gives.

    Args:
        moments: moments of N channels at P positions.
        class_pairs: number of pairs to sample, at least 2; None, or at least as many as there are: all.
        seed: seed of the sample.

    Raises:
        ValueError: if fewer than two classes have two samples, a moment is not finite, or
            ``class_pairs`` is less than 2.
    """
    if class_pairs is not None and class_pairs < 2:
        raise ValueError(f"class_pairs is {class_pairs}; it must be at least 2, or None for all")
    pairs = ClassPairs.of(moments)
    classes, number = len(pairs.mean), pairs.number
    if class_pairs is None or class_pairs >= number:
        squared = squared_distances(pairs, in_single=is_long(pairs))
        return Separation(squared.sqrt_(), classes, number, 0.0)
    drawn = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:class_pairs]
    halves = [pairs.only(part) for part in drawn.tensor_split(2)]
    one, two = (
        squared_distances(half, in_single=is_long(half)).mul_(number / half.number) for half in halves
    )
    distances = ((one + two) / 2).sqrt_()
    apart = distances > 0
    if not bool(apart.any()):
        return Separation(distances, classes, class_pairs, 0.0)
    # The error of the mean of two draws is half their difference, with finite population correction.
    errors = (one - two)[apart] / 2 * (1 - class_pairs / number) ** 0.5
    # From squares to distances: divide by the derivative of the square.
    errors /= 2 * distances[apart]
    share = errors.square().mean().sqrt() / distances[apart].median()
    return Separation(distances, classes, class_pairs, float(share))


def expected_seconds(moments: ClassMoments, class_pairs: int | None = None) -> float:
    """Estimate the time of :func:`compare_channels` on these moments from a trial on a few classes.

    Raises:
        ValueError: as :func:`compare_channels`.
    """
    pairs = ClassPairs.of(moments)
    classes = slice(0, CLASSES_TO_TRY)
    few = ClassPairs(pairs.mean[classes], pairs.variance[classes], pairs.log_root[classes])
    times = []
    for _ in range(2):  # the first one also warms up
        start = time.perf_counter()
        float(squared_distances(few, in_single=is_long(pairs)).sum())  # synchronises with an accelerator
        times.append(time.perf_counter() - start)
    return min(times) * min(class_pairs or pairs.number, pairs.number) / few.number
