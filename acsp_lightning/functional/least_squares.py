"""Least-squares recovery: the kept channels reconstruct the removed ones, without training."""

from collections.abc import Iterator

import torch
from torch import Tensor

from acsp_lightning.functional.precision import alike, device_of_float64, wide

# Ridge on the unit diagonal. Exact duplicates make the kept block singular; with this ridge it is
# always positive definite in float64. It also bounds the folded coefficients: none (in units of the
# channels' own sizes) exceeds 1 / (2 sqrt(1e-5)), about 160, which is safe in float32 inference, while
# a removed channel that is an exact multiple of a kept one is recovered to 1e-5.
RIDGE = 1e-5

# Ridge of a refit, on the unit diagonal of its inputs: enough for directions that the samples hardly
# cover; between 1e-6 and 1e-2 the accuracy of a refitted ResNet-56 did not change.
REFIT_RIDGE = 1e-4

CONSTANT = 1e-6  # standard deviation of a constant input by rounding, as a share of its size

CHUNK = 4096  # rows converted to float64 at a time


def reconstruction_map(second_moments: Tensor, kept: Tensor) -> Tensor:
    """Least-squares map from the kept channels to all channels: x ~ x[kept] @ M.

    M = G[kept, kept]^-1 G[kept, :], the normal equations of least squares. Every channel is scaled to
    unit size first, so that the ridge treats large and small ones equally.

    Args:
        second_moments: G = sum or mean of x x^T over samples, uncentred, as the consumer sees x;
            symmetric, positive semi-definite, shape (D, D). D is the number of channels.
        kept: indices of the K channels kept, without repeats, shape (K,), K >= 1.

    Returns:
        Float64, shape (K, D), on the device of G, or on the CPU if that has none. The columns of kept
        channels are exactly the
        identity. For a dead channel (G is 0 on its diagonal), row and column are 0 outside the
        identity.

    Raises:
        ValueError: if G is not square and finite with a diagonal >= 0, or ``kept`` is empty,
            repeats a channel or names one outside [0, D).
    """
    moments = wide(second_moments)
    if moments.ndim != 2 or moments.shape[0] != moments.shape[1]:
        raise ValueError(f"second moments have shape {tuple(moments.shape)}; they must be (D, D)")
    if not bool(moments.isfinite().all()) or bool((moments.diagonal() < 0).any()):
        raise ValueError(
            "second moments contain non-finite values or a negative diagonal; "
            "they must be a finite sum of x x^T: check the activations they were taken from"
        )
    num_channels = len(moments)
    indices = kept.tolist()
    outside = [index for index in indices if not 0 <= index < num_channels]
    if not indices or outside or len(set(indices)) < len(indices):
        raise ValueError(
            f"kept is {indices}; it must name at least one channel, each once, "
            f"all in [0, {num_channels})"
        )

    kept = kept.to(device=moments.device, dtype=torch.int64)
    size = moments.diagonal().sqrt()
    inverse_size = torch.where(size > 0, size.reciprocal(), 0.0)
    scaled = moments * inverse_size[:, None] * inverse_size
    rows = scaled[kept]
    # A dead channel has 0 instead of 1 on the diagonal; the ridge alone keeps its row solvable.
    ridge = RIDGE * torch.eye(len(kept), dtype=torch.float64, device=moments.device)
    factor = torch.linalg.cholesky(rows[:, kept] + ridge)
    reconstruction = torch.cholesky_solve(rows, factor)
    reconstruction = reconstruction * inverse_size[kept, None] * size
    # Known exactly, so the ridge must not shrink them or spread them over duplicates.
    reconstruction[:, kept] = torch.eye(len(kept), dtype=torch.float64, device=moments.device)
    return reconstruction


def fold_input(weight: Tensor, reconstruction: Tensor, *, dim: int = 1, spread: int = 1) -> Tensor:
    """Fold a reconstruction of the inputs into the weight that consumes them.

    Since W x ~ W M^T x[kept], the folded weight is W'[:, k] = sum_d M[k, d] W[:, d], separately for
    every kernel position. For a convolution without groups, or a linear layer.

    Args:
        weight: weight of the consumer, D * spread input positions along ``dim``.
        reconstruction: M, shape (K, D), as returned by ``reconstruction_map``.
        dim: the axis of the inputs; 1 for Linear and Conv, 0 for transposed convolutions.
        spread: consecutive inputs that belong to one channel: 1 or, for a linear layer after a flatten,
            the number of positions; channel d has inputs d * spread .. (d + 1) * spread - 1.

    Returns:
        New weight with K * spread inputs along ``dim``, in the dtype and on the device of
        ``weight``; computed in float64.

    Raises:
        ValueError: if ``weight`` does not have D * spread inputs along ``dim``.
    """
    num_channels = reconstruction.shape[1]
    if weight.shape[dim] != num_channels * spread:
        raise ValueError(
            f"weight has {weight.shape[dim]} inputs along axis {dim}; {num_channels} channels of "
            f"{spread} positions each need {num_channels * spread}: check dim and spread"
        )
    channels_first = wide(weight).movedim(dim, 0)
    by_channel = channels_first.reshape(num_channels, -1)
    folded: Tensor = reconstruction.to(by_channel) @ by_channel
    folded = folded.reshape(len(reconstruction) * spread, *channels_first.shape[1:])
    return alike(folded.movedim(0, dim).contiguous(), weight)


def refit_weight(
    inputs: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Refit a linear map to targets by least squares, with a ridge towards its current weight.

    Minimises the mean of ||W x + b - y||^2 plus a ridge on W - ``weight``, in units of the inputs' own
    sizes, so that directions not covered by the samples stay unchanged. Normal equations, in float64.

    Args:
        inputs: x, shape (S, D).
        targets: y, shape (S, O).
        weight: current weight, shape (O, D).
        bias: current bias, shape (O,); None: no bias is fitted.

    Returns:
        New weight and bias, in the dtypes of the old ones; the old ones, if there are no samples or
        they contain NaN or infinite values.
    """
    if not len(inputs) or not bool(inputs.isfinite().all() and targets.isfinite().all()):
        return weight, bias
    x_mean, y_mean = _means(inputs), _means(targets)
    x_shift, y_shift = (0.0, 0.0) if bias is None else (x_mean, y_mean)
    features = weight.shape[1]
    device = device_of_float64(weight.device)
    gram = torch.zeros(features, features, dtype=torch.float64, device=device)
    product = gram.new_zeros(features, len(weight))
    # Centred before the product: a difference of large products might not be positive definite.
    for x, y in zip(_chunks(inputs), _chunks(targets), strict=True):
        x = x - x_shift
        gram.addmm_(x.T, x)
        product.addmm_(x.T, y - y_shift)
    size = (gram.diagonal() / len(inputs)).sqrt()
    # Dead inputs, and those that are constant up to rounding, keep their weight.
    alive = size > CONSTANT * (size.square() + x_mean.square()).sqrt()
    inverse_size = torch.where(alive, size.reciprocal(), 0.0)
    gram = gram * inverse_size[:, None] * inverse_size / len(inputs)
    product = product * inverse_size[:, None] / len(inputs)
    old = wide(weight).T
    ridge = REFIT_RIDGE * torch.eye(features, dtype=torch.float64, device=device)
    factor = torch.linalg.cholesky(gram + ridge)
    solved = torch.cholesky_solve(product + REFIT_RIDGE * size[:, None] * old, factor)
    refitted = torch.where(alive[:, None], solved * inverse_size[:, None], old).T
    if bias is None:
        return alike(refitted, weight), None
    return alike(refitted, weight), alike(y_mean - refitted @ x_mean, bias)


def _chunks(rows: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(rows), CHUNK):
        yield wide(rows[start : start + CHUNK])


def _means(rows: Tensor) -> Tensor:
    nothing = torch.zeros((), device=device_of_float64(rows.device))
    total = sum((chunk.sum(0) for chunk in _chunks(rows)), nothing)
    return total / len(rows)
