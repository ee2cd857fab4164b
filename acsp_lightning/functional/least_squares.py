"""Least-squares recovery: the kept channels reconstruct the removed ones, without training."""

import torch
from torch import Tensor

from acsp_lightning.functional.precision import alike, device_of_float64, in_blocks, wide

# Ridge on the unit diagonal. Exact duplicates make the kept block singular; with this ridge it is
# always positive definite in float64. It also bounds the folded coefficients: none (in units of the
# channels' own sizes) exceeds 1 / (2 sqrt(1e-5)), about 160, which is safe in float32 inference, while
# a removed channel that is an exact multiple of a kept one is recovered to 1e-5.
RIDGE = 1e-5

# Ridge of a refit, on the unit diagonal of its inputs: enough for directions that the samples hardly
# cover; between 1e-6 and 1e-2 the accuracy of a refitted ResNet-56 did not change.
REFIT_RIDGE = 1e-4

CONSTANT = 1e-6  # standard deviation of a constant input by rounding, as a share of its size

STRIPES = 4  # of a symmetric product: of each, what lies left of the diagonal is not computed


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
    # What is not finite shows in the sum, without a second matrix.
    if not bool(moments.sum().isfinite()) or bool((moments.diagonal() < 0).any()):
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
    rows = moments[kept] * inverse_size[kept, None] * inverse_size
    # A dead channel has 0 instead of 1 on the diagonal; the ridge alone keeps its row solvable.
    ridge = RIDGE * torch.eye(len(kept), dtype=torch.float64, device=moments.device)
    factor = torch.linalg.cholesky(rows[:, kept] + ridge)
    reconstruction = torch.cholesky_solve(rows, factor)
    reconstruction = reconstruction * inverse_size[kept, None] * size
    # Known exactly, so the ridge must not shrink them or spread them over duplicates.
    reconstruction[:, kept] = torch.eye(len(kept), dtype=torch.float64, device=moments.device)
    return reconstruction


def fold_input(
    weight: Tensor,
    reconstruction: Tensor,
    *,
    dim: int = 1,
    spread: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Fold a reconstruction of the inputs into the weight that consumes them.

    Since W x ~ W M^T x[kept], the folded weight is W'[:, k] = sum_d M[k, d] W[:, d], separately for
    every kernel position. For a convolution without groups, or a linear layer.

    Args:
        weight: weight of the consumer, D * spread input positions along ``dim``.
        reconstruction: M, shape (K, D), as returned by ``reconstruction_map``.
        dim: the axis of the inputs; 1 for Linear and Conv, 0 for transposed convolutions.
        spread: consecutive inputs that belong to one channel: 1 or, for a linear layer after a flatten,
            the number of positions; channel d has inputs d * spread .. (d + 1) * spread - 1.
        out: what takes the new weight, of its shape; None: a new tensor, in the dtype and on the device
            of ``weight``.

    Returns:
        New weight with K * spread inputs along ``dim``, computed in float64: ``out``, if given.

    Raises:
        ValueError: if ``weight`` does not have D * spread inputs along ``dim``, or ``out`` does not have
            the shape of the new weight.
    """
    num_channels = reconstruction.shape[1]
    if weight.shape[dim] != num_channels * spread:
        raise ValueError(
            f"weight has {weight.shape[dim]} inputs along axis {dim}; {num_channels} channels of "
            f"{spread} positions each need {num_channels * spread}: check dim and spread"
        )
    kept = len(reconstruction) * spread
    shape = (*weight.shape[:dim], kept, *weight.shape[dim + 1 :])
    folded = weight.new_empty(shape) if out is None else out
    if folded.shape != shape:
        raise ValueError(f"out has shape {tuple(folded.shape)}; the new weight has {shape}")
    parts = in_blocks(weight.movedim(dim, 0), 1)
    for old, new in zip(parts, torch.split(folded.movedim(dim, 0), len(parts[0][0]), 1), strict=True):
        by_channel = wide(old).reshape(num_channels, -1)
        new.copy_(alike(reconstruction.to(by_channel) @ by_channel, weight).view_as(new))
    return folded


def refit_weight(
    inputs: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Refit a linear map to targets by least squares, with a ridge towards its current weight.

    Minimises the mean of ||W x + b - y||^2 plus a ridge on W - ``weight``, in units of the inputs' own
    sizes, so that directions not covered by the samples stay unchanged. In float64: normal equations
    of D unknowns or, where there are fewer samples than inputs, their dual of S unknowns.

    Args:
        inputs: x, shape (S, D).
        targets: y, shape (S, O).
        weight: current weight, shape (O, D).
        bias: current bias, shape (O,); None: no bias is fitted.

    Returns:
        New weight and bias, in the dtypes of the old ones; the old ones, if there are no samples or
        they contain NaN or infinite values.
    """
    found = LeastSquares(len(inputs), weight, bias)
    found.add(inputs, targets)
    return found.solve()


class LeastSquares:
    """:func:`refit_weight` of samples that come in parts.

    Sums of products are kept of them or, where there are fewer samples than inputs, themselves.

    Args:
        samples: S, of all parts together.
        weight: current weight, shape (O, D).
        bias: current bias, shape (O,); None: no bias is fitted.
    """

    def __init__(self, samples: int, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias
        centred = bias is not None
        self._rows: _Rows | _Products = (
            _Rows(centred) if samples < weight.shape[1] else _Products(weight, centred)
        )
        self._count = 0
        # On the device: whether all is finite is asked for once.
        self._finite = torch.ones((), dtype=torch.bool, device=weight.device)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take a part of the samples: x, (s, D), and y, (s, O)."""
        if len(inputs):
            self._finite &= inputs.isfinite().all() & targets.isfinite().all()
            self._count += len(inputs)
            self._rows.add(inputs, targets)

    def solve(self) -> tuple[Tensor, Tensor | None]:
        """New weight and bias, as :func:`refit_weight` returns them."""
        if not self._count or not bool(self._finite):
            return self._weight, self._bias
        refitted, shift = self._rows.solve(self._weight)
        return refitted, None if self._bias is None else alike(shift, self._bias)


class _Products:
    """Sums of products of samples: (D, D) normal equations."""

    def __init__(self, weight: Tensor, centred: bool) -> None:
        self._centred = centred
        self._count = 0
        outputs, features = weight.shape
        nothing = torch.zeros((), dtype=torch.float64, device=device_of_float64(weight.device))
        self._gram = nothing.new_zeros(features, features)
        self._product = nothing.new_zeros(features, outputs)
        # Near the means, since a difference of large products might not be positive definite.
        self._x_sum, self._y_sum = nothing.new_zeros(features), nothing.new_zeros(outputs)
        self._x_origin, self._y_origin = self._x_sum.clone(), self._y_sum.clone()

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        if self._centred and not self._count:
            self._x_origin, self._y_origin = _means(inputs), _means(targets)
        self._count += len(inputs)
        parts = in_blocks(inputs)
        for part, wanted in zip(parts, torch.split(targets, len(parts[0])), strict=True):
            # What is subtracted is in float64, and so is the difference.
            x, y = part.to(self._gram.device) - self._x_origin, wide(wanted) - self._y_origin
            for stripe in _stripes(self._gram):
                self._gram[stripe, stripe.start :].addmm_(x[:, stripe].T, x[:, stripe.start :])
            self._product.addmm_(x.T, y)
            self._x_sum += x.sum(0)
            self._y_sum += y.sum(0)

    def solve(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        gram, product, count = self._gram, self._product, self._count
        for stripe in _stripes(gram):
            gram[stripe.stop :, stripe] = gram[stripe, stripe.stop :].T
        x_mean, y_mean = self._x_origin, self._y_origin
        if self._centred:
            x_mean, y_mean = x_mean + self._x_sum / count, y_mean + self._y_sum / count
            gram.addr_(self._x_sum, self._x_sum, alpha=-1 / count)
            product.addr_(self._x_sum, self._y_sum, alpha=-1 / count)
        # What is left of a constant may be below 0 by rounding.
        size = (gram.diagonal().clamp(min=0) / count).sqrt()
        alive, inverse_size = _alive(size, x_mean)
        gram.mul_(inverse_size[:, None]).mul_(inverse_size / count)
        product.mul_(inverse_size[:, None] / count)
        old = wide(weight).T
        gram.diagonal().add_(REFIT_RIDGE)
        factor = torch.linalg.cholesky(gram)
        solved = torch.cholesky_solve(product.addcmul_(size[:, None], old, value=REFIT_RIDGE), factor)
        refitted = torch.where(alive[:, None], solved * inverse_size[:, None], old).T
        return alike(refitted, weight), y_mean - refitted @ x_mean


class _Rows:
    """Fewer samples than inputs: (S, S) equations for what the old weight leaves of the targets."""

    def __init__(self, centred: bool) -> None:
        self._centred = centred
        self._inputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        self._inputs.append(inputs)
        self._targets.append(targets)

    def solve(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        x, left = wide(torch.cat(self._inputs)), wide(torch.cat(self._targets))
        x_mean, y_mean = x.new_zeros(x.shape[1]), x.new_zeros(left.shape[1])
        if self._centred:
            x_mean, y_mean = x.mean(0), left.mean(0)
        x, left = x - x_mean, left - y_mean
        alive, inverse_size = _alive(x.square().mean(0).sqrt(), x_mean)
        x.mul_(alive)
        parts = in_blocks(weight)
        left -= torch.cat([x @ wide(part).T for part in parts], 1)
        x.mul_(inverse_size)
        system = x @ x.T / len(x)
        system.diagonal().add_(REFIT_RIDGE)
        moved = torch.cholesky_solve(left / len(x), torch.linalg.cholesky(system)).T
        x.mul_(inverse_size)
        refitted, given = [], []
        for part, move in zip(parts, torch.split(moved, len(parts[0])), strict=True):
            new = torch.addmm(wide(part), move, x)
            refitted.append(alike(new, weight))
            given.append(new @ x_mean)
        return torch.cat(refitted), y_mean - torch.cat(given)


def _alive(size: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Which inputs are neither dead nor constant up to rounding, and the inverse of their size, or 0.

    The others keep their weight.
    """
    alive = size > CONSTANT * (size.square() + mean * mean).sqrt()
    return alive, torch.where(alive, size.reciprocal(), 0.0)


def _stripes(gram: Tensor) -> list[slice]:
    step = -(-len(gram) // STRIPES)
    return [slice(start, min(start + step, len(gram))) for start in range(0, len(gram), step)]


def _means(rows: Tensor) -> Tensor:
    nothing = torch.zeros((), device=device_of_float64(rows.device))
    return sum((wide(part).sum(0) for part in in_blocks(rows)), nothing) / len(rows)
