"""Squared differences of channels in what they separate, over pairs of classes and positions.

By products of channels, which take a fraction of the time; where these are too inexact, one by one.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from acsp_lightning.functional._class_pairs import ClassPairs
from acsp_lightning.functional.precision import exact_products

# On the CPU, sums are computed in up to this many parts by up to as many threads. How many does not
# depend on the number of threads, so that the result does not either.
PARTS = 8

# Rows of one matrix product on the CPU: enough to amortise its overhead.
ROWS = 8192

# Rows of a matrix between all channels that are worked on at once.
STRIPE = 512

# Of two channels x and y, as vectors about the mean of all channels, |x - y|^2 is |x|^2 + |y|^2 - 2xy,
# which has a rounding error of some 1e-15 of that sum in float64, and of 2e-6 in float32, whose products
# are added up in float64 after every ROWS rows. Below these shares of the sum it is not used; above them
# the relative error of the distance is below 1e-11, or 1e-5.
CANCELLATION = {torch.float64: 1e-4, torch.float32: 0.05}

# In float32 only for so many class pairs and positions: fewer take a second or two in float64, and the
# errors of single ones do not cancel as well.
MANY_ROWS = 10**5

# Nor is it in float32 where |x - y|^2 is below so much, and so much a row: one JM has an error of 1e-7.
FEW_DIFFERENCES, FAINT_DIFFERENCES = 4e-4, 1e-8

# The difference of two channels in one row takes about as long as this many products.
PRODUCTS = 32

# Numbers of threads are global to the process, so one call at a time may change them.
ALONE = Lock()


def is_long(pairs: ClassPairs) -> bool:
    """Whether there are so many class pairs and positions that float32 pays."""
    return pairs.number * pairs.mean.shape[1] >= MANY_ROWS


def squared_distances(pairs: ClassPairs, *, in_single: bool) -> Tensor:
    """Sums over pairs of classes and positions of squared differences in JM, (N, N).

    Args:
        pairs: class pairs, in float64.
        in_single: compute in float32 as far as that will do, which is twice as fast on the CPU and many
            times on most GPUs.
    """
    if in_single:
        squared, near = _by_products(pairs.in_single(), pairs.silent)
        if len(near):
            squared[near[:, 0], near[:, 1]] = _exactly(pairs, near)
    else:
        squared = _in_double(pairs)
    return (squared + squared.T).mul_(4)


def _in_double(pairs: ClassPairs) -> Tensor:
    """Squared differences of channels in float64, as :func:`_by_products` gives them."""
    squared, near = _by_products(pairs, pairs.silent)
    if len(near):
        used, places = _used(pairs, near)
        squared[near[:, 0], near[:, 1]] = _squared_differences(pairs.channels(used), places)
    return squared


def _exactly(pairs: ClassPairs, channels: Tensor) -> Tensor:
    """As :func:`_squared_differences`, by products where that is faster."""
    used, places = _used(pairs, channels)
    few = pairs.channels(used)
    if len(channels) * PRODUCTS <= few.mean.shape[2] ** 2:
        return _squared_differences(few, places)
    return _in_double(few)[places[:, 0], places[:, 1]]


def _used(pairs: ClassPairs, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Which of N channels are among some, bool (N,), and where these are among those."""
    used = torch.zeros(pairs.mean.shape[2], dtype=torch.bool, device=channels.device)
    used[channels.flatten()] = True
    return used, (used.cumsum(dim=0) - 1)[channels]


def _by_products(pairs: ClassPairs, silent: Tensor) -> tuple[Tensor, Tensor]:
    """Squared differences of channels, and the channels for which they are too inexact.

    Args:
        pairs: class pairs of N channels, in float32 or float64.
        silent: channels that separate nothing, bool, (N,).

    Returns:
        Sums over pairs of classes and positions, in units of half a JM, float64, (N, N), above the
        diagonal, and zero elsewhere; and pairs of channels, each in order, int64, (R, 2).
    """
    squared = _products(pairs)
    norms, share = squared.diagonal().clone(), CANCELLATION[pairs.log_root.dtype]
    least = 0.0
    if pairs.log_root.dtype == torch.float32:
        least = FEW_DIFFERENCES + FAINT_DIFFERENCES * pairs.number * pairs.mean.shape[1]
    near = []
    # In stripes, since of wide layers every matrix counts.
    for start in range(0, len(norms), STRIPE):
        rows = slice(start, start + STRIPE)
        scale = norms[rows, None] + norms
        stripe = squared[rows].mul_(-2).add_(scale).triu_(diagonal=start + 1)
        # Between channels that separate nothing distances are exactly zero.
        nothing = silent[rows, None] & silent
        stripe.masked_fill_(nothing, 0.0)
        close = torch.triu((stripe <= scale.mul_(share).add_(least)) & ~nothing, diagonal=start + 1)
        near.append(close.nonzero() + torch.tensor([start, 0], device=close.device))
    return squared, torch.cat(near)


def _products(pairs: ClassPairs) -> Tensor:
    """Sums of products of two channels about the mean of all, over class pairs and positions, (N, N)."""
    num_channels = pairs.mean.shape[2]
    if pairs.mean.device.type == "cpu":
        # One thread per part instead of several per operation: operations are too short for that, and
        # the thread pools of the two libraries would block each other.
        with ALONE, _one_thread_each() as threads, ThreadPoolExecutor(threads) as workers:
            # A part of less than one product would cost a matrix and gain nothing.
            number = min(PARTS, -(-pairs.number * pairs.mean.shape[1] // ROWS))
            parts = [
                workers.submit(_part_of_products, pairs, range(part, len(pairs.mean), number))
                for part in range(number)
            ]
            total = parts[0].result()
            for part in parts[1:]:
                total += part.result()
            return total
    products = pairs.mean.new_zeros(num_channels, num_channels, dtype=torch.float64)
    with exact_products():
        for block in pairs.blocks(pairs.room):
            values = block.flatten(0, 1)
            for rows in torch.split(values - values.mean(dim=1, keepdim=True), ROWS):
                products += rows.T @ rows
    return products


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Let threads that are started meanwhile use no others; gives the number that this one may use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield threads
    finally:
        torch.set_num_threads(threads)


def _part_of_products(pairs: ClassPairs, firsts: range) -> Tensor:
    num_channels = pairs.mean.shape[2]
    room = min(max(ROWS, pairs.room // num_channels), pairs.number * pairs.mean.shape[1])
    rows = torch.empty(room, num_channels, dtype=pairs.log_root.dtype)
    matrix = rows.numpy()
    total = torch.zeros(num_channels, num_channels, dtype=torch.float64)
    product = np.empty((num_channels, num_channels), matrix.dtype)
    filled = 0
    for block in pairs.blocks(pairs.room, firsts):
        values = block.flatten(0, 1)
        if filled + len(values) > len(rows):
            # NumPy recognises the product with the transpose and computes half; torch computes all.
            total += torch.from_numpy(np.matmul(matrix[:filled].T, matrix[:filled], out=product))
            filled = 0
        place = slice(filled, filled + len(values))
        torch.sub(values, values.mean(dim=1, keepdim=True), out=rows[place])
        filled += len(values)
    return total.add_(torch.from_numpy(np.matmul(matrix[:filled].T, matrix[:filled], out=product)))


def _squared_differences(pairs: ClassPairs, channels: Tensor) -> Tensor:
    """Sums over pairs of classes and positions of squared differences, free of cancellation.

    Args:
        pairs: class pairs of N channels.
        channels: indices of channels to compare, shape (R, 2).

    Returns:
        Shape (R,), in units of half a JM.
    """
    step = pairs.mean.shape[2]
    squared = pairs.mean.new_zeros(len(channels))
    # This many comparisons take no more memory than the block they come from.
    chunks = [slice(start, start + step) for start in range(0, len(channels), step)]
    for block in pairs.blocks(pairs.room):
        values = block.flatten(0, 1)
        for chunk in chunks:
            first, second = channels[chunk].T
            squared[chunk] += (values[:, first] - values[:, second]).square_().sum(dim=0)
    return squared
