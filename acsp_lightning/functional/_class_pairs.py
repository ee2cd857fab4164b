"""Pairs of classes and their JM distances, computed block by block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from acsp_lightning.functional.moments import ClassMoments

# A component that is constant within a class (a dead pixel, a ReLU that never fires) has zero variance,
# and the logarithm in the Bhattacharyya distance diverges: with a small absolute floor that pixel would
# look maximally separating. Both floors are relative to the component itself, so that JM is invariant
# to affine maps: a tenth of the pooled within-class standard deviation and, where every class is
# constant, a thousandth of the component's total standard deviation.
WITHIN_CLASS_VARIANCE_FLOOR = 1e-2
TOTAL_VARIANCE_FLOOR = 1e-6

# Relative to the mean square. Activations are float32, with a rounding error of about 1e-7, or 1e-14 of
# the square; a component that varies by only a few such steps is rounding noise, which must not
# separate classes.
CONSTANT_VARIANCE = 1e-12

# In float32, a mean so many standard deviations from the others has an error of 2e-6 of them.
FAR = 32

# Values in one block of class pairs. About four blocks are in memory at once; the (N, P * L) matrix,
# 200 GB for a wide ImageNet layer, is never built. On the CPU a block fits in the caches; accelerators
# need larger ones.
BLOCK = 2**16
BLOCK_ON_ACCELERATOR = 2**23


@dataclass(frozen=True, slots=True)
class ClassPairs:
    """Pairs of classes, with the quantities that their JM distances are computed from.

    Attributes:
        mean: class means, (C, P, N), scaled so that no factor is left in the exponent.
        variance: half of the class variances, (C, P, N), whose mean over the classes is one half.
        log_root: logarithm of the fourth root of twice that, (C, P, N).
        partners: for every class, the later classes that it is compared with; None: all of them.
    """

    mean: Tensor
    variance: Tensor
    log_root: Tensor
    partners: tuple[Tensor, ...] | None = None

    @classmethod
    def of(cls, moments: ClassMoments) -> Self:
        """All pairs of the classes that were seen twice or more.

        Raises:
            ValueError: as :func:`acsp_lightning.functional.separation_distances`.
        """
        seen = _checked_classes(moments)
        mean, variance = _floored(
            moments.count[seen], moments.mean.detach()[seen], moments.m2.detach()[seen]
        )
        # Channels last, so that a block is a matrix with one column per channel.
        mean, variance = mean.transpose(1, 2).contiguous(), variance.transpose(1, 2).contiguous()
        # JM does not depend on the unit, in which float32 has the most digits to spare.
        unit = variance.mean(dim=0)
        mean.mul_(unit.mul(8).rsqrt_())
        variance.div_(unit)
        return cls(mean, variance / 2, variance.log_().mul_(0.25))

    @property
    def room(self) -> int:
        """Number of values in a block, by device, and twice as many in float32."""
        most = BLOCK if self.mean.device.type == "cpu" else BLOCK_ON_ACCELERATOR
        return most * 8 // self.log_root.element_size()

    @property
    def number(self) -> int:
        """Number of pairs."""
        if self.partners is not None:
            return sum(map(len, self.partners))
        return len(self.mean) * (len(self.mean) - 1) // 2

    def only(self, chosen: Tensor) -> Self:
        """A subset of all pairs, by their indices in lexicographic order, int64."""
        classes = len(self.mean)
        first, second = torch.triu_indices(classes, classes, offset=1)[:, chosen.sort().values]
        counts = first.bincount(minlength=classes).tolist()
        return replace(self, partners=torch.split(second.to(self.mean.device), counts))

    def channels(self, chosen: Tensor) -> Self:
        """The same pairs of classes for a subset of the channels."""
        return replace(
            self,
            mean=self.mean[..., chosen],
            variance=self.variance[..., chosen],
            log_root=self.log_root[..., chosen],
        )

    def in_single(self) -> Self:
        """The same pairs, with JM in float32, of an error of some 1e-6 at most."""
        mean = self.mean - self.mean.mean(dim=0)
        # Else differences of means are taken before they are rounded.
        if bool((mean.abs().amax(dim=0) <= FAR * self.variance.amin(dim=0).sqrt()).all()):
            mean = mean.float()
        return replace(self, mean=mean, variance=self.variance.float(), log_root=self.log_root.float())

    @property
    def silent(self) -> Tensor:
        """Channels that are alike in all classes, so that their JM are 0: bool, (N,)."""
        alike = (self.mean == self.mean[:1]) & (self.log_root == self.log_root[:1])
        return alike.all(dim=1).all(dim=0)

    def blocks(self, room: int, firsts: range | None = None) -> Iterator[Tensor]:
        """Yield 1 - JM / 2 of the pairs, in blocks of shape (pairs in the block, positions, N).

        Args:
            room: values in a block; N, if that is more. With room for all classes at all positions, the
                pairs are in lexicographic order.
            firsts: first classes of the pairs; None: all.
        """
        classes, positions, num_channels = self.mean.shape
        length = min(positions, max(1, room // num_channels))
        step = max(1, room // (num_channels * length))
        firsts = range(classes) if firsts is None else firsts
        for here in self._stretches(length):
            if self.partners is None:
                yield from here._in_tiles(step, firsts)
            else:
                for first in firsts:
                    for seconds in torch.split(self.partners[first], step):
                        yield here._block(first, seconds)

    def of_first(self, first: int) -> Iterator[tuple[Tensor, slice | Tensor]]:
        """Yield blocks of the pairs of one class with later ones, and the indices of the latter."""
        classes, positions, num_channels = self.mean.shape
        length = min(positions, max(1, self.room // num_channels))
        step = max(1, self.room // (num_channels * length))
        for here in self._stretches(length):
            others: Iterable[slice | Tensor]
            if self.partners is None:
                lows = range(first + 1, classes, step)
                others = (slice(low, min(low + step, classes)) for low in lows)
            else:
                others = torch.split(self.partners[first], step)
            for seconds in others:
                if isinstance(seconds, slice) or len(seconds):
                    yield here._block(first, seconds), seconds

    def _stretches(self, length: int) -> Iterator[Self]:
        """Yield the same pairs at chunks of the positions."""
        for start in range(0, self.mean.shape[1], length):
            here = slice(start, start + length)
            yield replace(
                self,
                mean=self.mean[:, here],
                variance=self.variance[:, here],
                log_root=self.log_root[:, here],
            )

    def _in_tiles(self, step: int, firsts: range) -> Iterator[Tensor]:
        # The classes of a tile stay in the caches while they are paired with all earlier classes.
        for low in range(0, len(self.mean), step):
            high = min(low + step, len(self.mean))
            for first in firsts:
                if first + 1 < high:
                    yield self._block(first, slice(max(low, first + 1), high))

    def _block(self, first: int, seconds: slice | Tensor) -> Tensor:
        return _overlap(
            (self.mean[first] - self.mean[seconds]).to(self.log_root.dtype),
            self.variance[first] + self.variance[seconds],
            self.log_root[first] + self.log_root[seconds],
        )


def _overlap(difference: Tensor, variance: Tensor, log_root: Tensor) -> Tensor:
    """exp(-B) in as few passes over memory as possible; ``jeffries_matusita`` has the formula.

    Args:
        difference: difference of the scaled means; overwritten.
        variance: mean of the two variances; overwritten.
        log_root: logarithm of the root of their geometric mean; overwritten.
    """
    inverse = variance.rsqrt_()
    difference.mul_(inverse)
    exponent = torch.addcmul(log_root, difference, difference, value=-1, out=log_root)
    return exponent.exp_().mul_(inverse)


def _floored(count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor]:
    """Class means and floored class variances, both (C, N, P); equal where a component is constant."""
    count = count.to(torch.float64)[:, None, None]
    share = count / count.sum()
    grand_mean = (share * mean).sum(dim=0)
    within = m2.sum(dim=0) / count.sum()
    total = within + (share * (mean - grand_mean).square()).sum(dim=0)
    floor = torch.maximum(WITHIN_CLASS_VARIANCE_FLOOR * within, TOTAL_VARIANCE_FLOOR * total)
    constant = total <= CONSTANT_VARIANCE * (total + grand_mean.square())
    variance = torch.maximum(m2 / count, floor)
    # Zero and one, so that the JM of equal classes is exactly 0.
    return mean.masked_fill(constant, 0.0), variance.masked_fill_(constant, 1.0)


def seen_classes(moments: ClassMoments) -> Tensor:
    """Indices of the classes that can be compared, int64: a variance needs at least two samples."""
    return torch.nonzero(moments.count > 1).flatten()


def _checked_classes(moments: ClassMoments) -> Tensor:
    """Indices of the classes that can be compared, after the checks that every caller needs."""
    seen = seen_classes(moments)
    if len(seen) < 2:
        raise ValueError(
            f"{len(seen)} of {moments.num_classes} classes have 2 samples or more; separability "
            "compares classes by their variances, so at least 2 such classes are needed: capture more "
            "batches"
        )
    finite = (moments.mean.isfinite() & moments.m2.isfinite()).all(dim=2).all(dim=0)
    broken = torch.nonzero(~finite).flatten().tolist()
    if broken:
        raise ValueError(
            f"{len(broken)} of {moments.num_channels} channels have moments that are not finite, "
            f"the first is channel {broken[0]}; the network's activations must be finite: "
            "check the learning rate and the precision it runs in"
        )
    return seen
