"""Mean and spread of channels over values that come in parts."""

import torch
from torch import Tensor


class PooledMoments:
    """Mean and standard deviation of C channels, merged from part to part.

    Of each part both are computed in single precision at least, and merged as by Chan, Golub and LeVeque
    (1983), so that no large sums are subtracted from each other.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._squares = torch.zeros(())

    def add(self, values: Tensor, dim: int) -> None:
        """Take a part.

        Args:
            values: of any shape, with at least one value of each channel.
            dim: dimension of the channels.
        """
        rows = values.detach().movedim(dim, 0).flatten(1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        variance, mean = torch.var_mean(rows, 1, correction=0)
        count, squares = rows.shape[1], variance * rows.shape[1]
        if not self._count:
            self._count, self._mean, self._squares = count, mean, squares
            return
        both = self._count + count
        step = mean - self._mean
        self._mean = self._mean + step * (count / both)
        self._squares = self._squares + squares + step.square() * (self._count * count / both)
        self._count = both

    @property
    def mean(self) -> Tensor:
        """Over all values so far, (C,)."""
        return self._mean

    @property
    def spread(self) -> Tensor:
        """Standard deviation over all values so far, biased, (C,)."""
        return (self._squares / max(1, self._count)).sqrt()
