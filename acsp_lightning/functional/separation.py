"""How well each channel separates each pair of classes, and how far channels are apart in that."""

from collections.abc import Iterator

import torch
from torch import Tensor

from acsp_lightning.functional.moments import ClassMoments

# A class on which a component is constant (a dead pixel, a ReLU that never fires) has no variance,
# and the logarithm in the Bhattacharyya distance explodes: with a small absolute floor that pixel
# would look maximally separating. Both floors are relative to the component itself, which keeps JM
# unchanged by affine maps: a tenth of the pooled standard deviation within the classes, and, where
# every class is constant, a thousandth of the component's whole standard deviation.
WITHIN_CLASS_VARIANCE_FLOOR = 1e-2
TOTAL_VARIANCE_FLOOR = 1e-6

# Relative to the mean square. Activations arrive in float32, whose rounding is about 1e-7 of the
# value, 1e-14 in squares; a component that varies by no more than a few such steps carries only
# rounding noise, and noise may not separate classes.
CONSTANT_VARIANCE = 1e-12

# Scratch for one block of class pairs; about five of them are alive at once. Large enough to keep
# the device busy, small enough that the (N, P * L) matrix, 200 GB for a wide ImageNet layer, never
# exists.
BLOCK_BYTES = 8 * 2**20

# Share of |x|^2 + |y|^2 below which |x|^2 + |y|^2 - 2xy, wrong by some 1e-15 of that sum, is not
# taken for |x - y|^2. What is taken is right to about 1e-12 of itself.
CANCELLATION = 1e-3


def jeffries_matusita(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """Jeffries-Matusita distance between two univariate normals, element by element.

    JM = 2 (1 - exp(-B)), with B the Bhattacharyya distance, whose mean term is
    (mean_a - mean_b)^2 / (4 (var_a + var_b)). This is the squared convention, in [0, 2]; some
    texts take its square root. exp(-B) has a closed form without logarithms, which is used here.

    Args:
        mean_a: means of one class, any shape.
        var_a: its variances, positive; the floors of this module see to that for moments.
        mean_b: means of the other class.
        var_b: its variances, positive.

    Returns:
        JM in [0, 2], in the shape the arguments broadcast to; 0 for equal moments.
    """
    var_sum = var_a + var_b
    overlap = torch.sqrt(2 * torch.sqrt(var_a) * torch.sqrt(var_b) / var_sum)
    overlap = overlap * torch.exp(-((mean_a - mean_b) ** 2) / (4 * var_sum))
    return (2 - 2 * overlap).clamp(min=0)


def separability_vectors(moments: ClassMoments) -> Tensor:
    """JM of every channel for every pair of classes and every position, stored in full.

    For notebooks and small layers; ``separation_distances`` does not need it.

    Args:
        moments: moments of N channels at P positions.

    Returns:
        Float64 matrix, shape (N, L * P), values in [0, 2]. Pairs (a, b), a < b, of the classes seen
        run in lexicographic order, and the positions of one pair lie side by side.

    Raises:
        ValueError: as ``separation_distances``.
    """
    return torch.cat(list(_separability_blocks(moments)), dim=1)


def mean_separability(moments: ClassMoments) -> Tensor:
    """Mean JM of every channel over class pairs and positions, without storing the vectors.

    Args:
        moments: moments of N channels at P positions.

    Returns:
        Float64, shape (N,), in [0, 2]; 0 for a constant channel.

    Raises:
        ValueError: as ``separation_distances``.
    """
    total = moments.mean.new_zeros(moments.num_channels)
    length = 0
    for block in _separability_blocks(moments):
        total += block.sum(dim=1)
        length += block.shape[1]
    return total / length


def separation_distances(moments: ClassMoments) -> Tensor:
    """Euclidean distances between the channels' separability vectors.

    Classes never seen are left out. The sum over class pairs is taken block by block; the vectors
    themselves are never stored. Memory: a few N * N plus a few blocks of ``BLOCK_BYTES`` (or of one
    class pair, where that is more). Time: one product of matrices, (N, L * P) by its transpose, and
    L * P differences for each pair of channels that nearly agree.

    Args:
        moments: moments of N channels at P positions, at least two samples of each class seen.

    Returns:
        Float64, shape (N, N), symmetric, zero diagonal, on the moments' device. Channels with equal
        moments are at distance 0.

    Raises:
        ValueError: if fewer than two classes were seen, a class was seen exactly once, or a moment
            is not finite.
    """
    num_channels = moments.num_channels
    products = moments.mean.new_zeros(num_channels, num_channels)
    for block in _separability_blocks(moments):
        # Distances ignore what all channels share, and without it less cancels below.
        centred = block - block.mean(dim=0)
        products.addmm_(centred, centred.T)
    norms = products.diagonal()
    scale = norms[:, None] + norms
    # From one triangle alone: a product with its own transpose may be asymmetric in the last bit.
    squared = (scale - 2 * products).triu_(diagonal=1)
    near = torch.triu(squared <= CANCELLATION * scale, diagonal=1).nonzero()
    if len(near):
        squared[near[:, 0], near[:, 1]] = _squared_differences(moments, near)
    return (squared + squared.T).sqrt_()


def _squared_differences(moments: ClassMoments, pairs: Tensor) -> Tensor:
    """Squared distances of some pairs of channels, free of cancellation.

    Args:
        moments: moments of N channels.
        pairs: indices of channels, shape (R, 2).

    Returns:
        Float64, shape (R,).
    """
    used = torch.zeros(moments.num_channels, dtype=torch.bool, device=pairs.device)
    used[pairs.flatten()] = True
    rows = (used.cumsum(dim=0) - 1)[pairs]
    involved = ClassMoments(moments.count, moments.mean[:, used], moments.m2[:, used])
    squared = moments.mean.new_zeros(len(pairs))
    step = involved.num_channels
    # So many pairs take no more room than the block their rows come from.
    chunks = [slice(start, start + step) for start in range(0, len(pairs), step)]
    for block in _separability_blocks(involved):
        for chunk in chunks:
            first, second = rows[chunk].T
            squared[chunk] += (block[first] - block[second]).square_().sum(dim=1)
    return squared


def _separability_blocks(moments: ClassMoments) -> Iterator[Tensor]:
    """JM of consecutive class pairs; each block is (N, pairs in the block * P)."""
    seen = _seen_classes(moments)
    count = moments.count[seen].to(torch.float64)[:, None, None]
    mean, variance, constant = _floored(count, moments.mean[seen], moments.m2[seen])
    # Channels first, so that a block is a view of its rows.
    mean, variance = mean.transpose(0, 1), variance.transpose(0, 1)
    first, second = torch.triu_indices(len(seen), len(seen), offset=1, device=mean.device)
    pair_bytes = max(1, moments.num_channels * moments.num_positions * mean.element_size())
    pairs_per_block = max(1, BLOCK_BYTES // pair_bytes)
    for a, b in zip(first.split(pairs_per_block), second.split(pairs_per_block), strict=True):
        jm = jeffries_matusita(mean[:, a], variance[:, a], mean[:, b], variance[:, b])
        yield jm.masked_fill_(constant[:, None], 0.0).flatten(start_dim=1)


def _floored(count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class means and floored class variances, both (C, N, P), and the constant ones, (N, P)."""
    share = count / count.sum()
    grand_mean = (share * mean).sum(dim=0)
    within = m2.sum(dim=0) / count.sum()
    total = within + (share * (mean - grand_mean).square()).sum(dim=0)
    constant = total <= CONSTANT_VARIANCE * (total + grand_mean.square())
    floor = torch.maximum(WITHIN_CLASS_VARIANCE_FLOOR * within, TOTAL_VARIANCE_FLOOR * total)
    # Constant components are overwritten later; any positive variance keeps them free of 0 / 0.
    floor = floor.masked_fill(constant, 1.0)
    return mean, torch.maximum(m2 / count, floor), constant


def _seen_classes(moments: ClassMoments) -> Tensor:
    """Indices of the classes seen, after the checks that every caller needs."""
    counts = moments.count.tolist()
    seen = [index for index, count in enumerate(counts) if count > 0]
    if len(seen) < 2:
        raise ValueError(
            f"{len(seen)} of {len(counts)} classes were seen; separability compares classes, "
            "so at least 2 are needed: capture more batches"
        )
    single = [index for index in seen if counts[index] == 1]
    if single:
        raise ValueError(
            f"class {single[0]} has 1 sample (as {len(single)} of {len(seen)} classes do); "
            "a variance needs at least 2 samples: capture more batches"
        )
    finite = (moments.mean.isfinite() & moments.m2.isfinite()).all(dim=2).all(dim=0)
    broken = torch.nonzero(~finite).flatten().tolist()
    if broken:
        raise ValueError(
            f"{len(broken)} of {moments.num_channels} channels have moments that are not finite, "
            f"the first is channel {broken[0]}; the network's activations must be finite: "
            "check the learning rate and the precision it runs in"
        )
    return torch.tensor(seen, device=moments.mean.device)
