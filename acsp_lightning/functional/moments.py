"""Mean and variance of every class, accumulated batch by batch without cancellation."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from acsp_lightning.functional.precision import alike, wide


@dataclass(frozen=True, slots=True)
class ClassMoments:
    """First two moments of every class, channel and position.

    Attributes:
        count: samples seen of each class, int64, shape (C,). May be 0.
        mean: class means, float64, shape (C, N, P). 0 for a class never seen.
        m2: sums of squared deviations from the class mean, float64, shape (C, N, P), so that the
            population variance is ``m2 / count``. 0 for a class never seen.

    Raises:
        ValueError: if the shapes are inconsistent, or mean or m2 is not float64.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __post_init__(self) -> None:
        shapes = f"count {_shape(self.count)}, mean {_shape(self.mean)}, m2 {_shape(self.m2)}"
        if self.mean.ndim != 3 or self.m2.shape != self.mean.shape:
            raise ValueError(f"moments have shapes {shapes}; mean and m2 must both be (C, N, P)")
        if self.count.shape != self.mean.shape[:1]:
            raise ValueError(f"moments have shapes {shapes}; count must be (C,), one per class")
        # Merging hundreds of batches and differences of near-equal channels need the precision.
        if self.mean.dtype != torch.float64 or self.m2.dtype != torch.float64:
            raise ValueError(
                f"mean is {self.mean.dtype} and m2 is {self.m2.dtype}; "
                "both must be torch.float64: convert the values before taking moments"
            )

    @property
    def num_classes(self) -> int:
        """C, classes never seen included."""
        return self.mean.shape[0]

    @property
    def num_channels(self) -> int:
        """N."""
        return self.mean.shape[1]

    @property
    def num_positions(self) -> int:
        """P."""
        return self.mean.shape[2]


@dataclass(frozen=True, slots=True)
class ClassSums:
    """Running sums over the samples of every class, to which batches are added.

    Values are shifted by an origin, a typical value of every component, so that a small variance on a
    large mean keeps its precision. Float32 activations are summed in float32, in half the memory of
    ``ClassMoments``: for a class whose mean lies d standard deviations from the origin, the relative
    error of the variance is about 1e-6 (1 + d^2).

    Attributes:
        count: samples seen of each class, int64, shape (C,).
        origin: shape (N, P), in the dtype of the activations, at least float32.
        total: sums of the deviations from the origin, shape (C, N, P), same dtype.
        squares: sums of their squares, shape (C, N, P), same dtype.
    """

    count: Tensor
    origin: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def about(cls, values: Tensor, num_classes: int) -> Self:
        """Empty sums, with the mean of some samples as the origin.

        Args:
            values: activations of any real dtype, shape (B, N, P), B at least 1.
            num_classes: C.
        """
        values = _wide(values)
        empty = values.new_zeros(num_classes, *values.shape[1:])
        count = torch.zeros(num_classes, dtype=torch.int64, device=values.device)
        return cls(count, values.mean(dim=0), empty, torch.zeros_like(empty))

    def add_(self, values: Tensor, labels: Tensor) -> None:
        """Add a batch, in place. The cost does not grow with the number of classes.

        The range of labels on an accelerator is not checked, which would synchronise with the host.

        Args:
            values: activations, shape (B, N, P); P is 1 for a linear layer.
            labels: class of each sample, integers in [0, C), shape (B,), on the values' device.

        Raises:
            ValueError: if shapes or dtypes do not fit, or a label is out of range.
        """
        _check_batch(values, labels)
        _check_same(self.origin.shape, values.shape[1:])
        labels = labels.long()
        if labels.device.type == "cpu":
            _check_range(labels, len(self.count))
        deviations = values.to(self.origin) - self.origin
        self.count.index_add_(0, labels, torch.ones_like(labels))
        self.total.index_add_(0, labels, deviations)
        self.squares.index_add_(0, labels, deviations.square_())

    def whole(self) -> Tensor:
        """Sum of the values of all samples, float64, (N, P)."""
        return wide(self.total).sum(0) + wide(self.count).sum() * wide(self.origin)

    def move_(self, origin: Tensor) -> None:
        """Sum about another origin, in place; sums about one origin can be added.

        Args:
            origin: shape (N, P); a value near the mean of the samples, or the variances lose digits.
        """
        origin = alike(origin, self.origin)
        # In double, because the origins may be far apart.
        total, count = wide(self.total), wide(self.count)[:, None, None]
        offset = wide(self.origin) - wide(origin)
        squares = wide(self.squares).addcmul(offset, total, value=2).addcmul_(count, offset.square())
        self.squares.copy_(squares)
        self.total.copy_(torch.addcmul(total, count, offset))
        self.origin.copy_(origin)

    def widened(self, num_classes: int) -> "ClassSums":
        """The same sums over at least ``num_classes`` classes."""
        missing = num_classes - len(self.count)
        if missing <= 0:
            return self
        empty = self.total.new_zeros(missing, *self.origin.shape)
        return ClassSums(
            torch.cat([self.count, self.count.new_zeros(missing)]),
            self.origin,
            torch.cat([self.total, empty]),
            torch.cat([self.squares, empty]),
        )

    def to(self, device: torch.device) -> "ClassSums":
        """The same sums on another device."""
        return ClassSums(*(getattr(self, field.name).to(device) for field in fields(self)))

    def moments(self) -> ClassMoments:
        """Mean and sum of squared deviations of every class, in float64, where the device has it."""
        total = wide(self.total)
        count = self.count.to(total.device)
        offset = total / count.clamp(min=1)[:, None, None]
        m2 = (wide(self.squares) - total * offset).clamp_(min=0)
        mean = torch.where(count[:, None, None] > 0, offset.add_(wide(self.origin)), 0.0)
        return ClassMoments(count, mean, m2)


def class_moments(values: Tensor, labels: Tensor, num_classes: int | None = None) -> ClassMoments:
    """Moments of one batch.

    Args:
        values: activations of any real dtype, shape (B, N, P); P is 1 for a linear layer.
        labels: class of each sample, integers in [0, C), shape (B,), on the values' device.
        num_classes: C; None: the largest label of this batch plus one.

    Returns:
        Moments over C classes on the values' device, or on the CPU if that has no float64.

    Raises:
        ValueError: if shapes or dtypes do not fit, a label is out of range, or the batch is empty.
    """
    _check_batch(values, labels)
    if labels.numel() == 0:
        raise ValueError("the batch is empty; pass at least one sample")
    values = wide(values)
    labels = labels.to(values.device)
    sums = ClassSums.about(values, num_classes or int(labels.max()) + 1)
    sums.add_(values, labels)
    return sums.moments()


def _wide(values: Tensor) -> Tensor:
    """At least float32: half precision is too coarse for sums."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_batch(values: Tensor, labels: Tensor) -> None:
    if values.ndim != 3 or labels.shape != values.shape[:1]:
        raise ValueError(
            f"values have shape {_shape(values)} and labels {_shape(labels)}; "
            "they must be (B, N, P) and (B,): flatten the positions of a map into one axis"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}; they must be integer class indices")


def _check_same(known: torch.Size, found: torch.Size) -> None:
    if known != found:
        raise ValueError(
            f"moments of {known[0]} channels at {known[1]} positions cannot be merged "
            f"with moments of {found[0]} channels at {found[1]} positions; "
            "merge only what one layer gave for inputs of one size"
        )


def _check_range(labels: Tensor, num_classes: int) -> None:
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.numel() > 0:
        raise ValueError(
            f"labels contain {int(outside[0])}, which is outside [0, {num_classes}); "
            "drop samples without a class and pass the true number of classes"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
