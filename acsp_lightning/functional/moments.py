"""Mean and variance of every class, gathered batch by batch and merged without cancellation."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClassMoments:
    """First two moments of every class, channel and position.

    Attributes:
        count: samples seen of each class, int64, shape (C,). May be 0.
        mean: class means, float64, shape (C, N, P). 0 for a class never seen.
        m2: sums of squared deviations from the class mean, float64, shape (C, N, P), so that the
            population variance is ``m2 / count``. 0 for a class never seen.

    Raises:
        ValueError: if the shapes do not belong together or mean or m2 is not float64.
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
        # Merging hundreds of batches and differences of near-equal channels need the digits.
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


def class_moments(values: Tensor, labels: Tensor, num_classes: int | None = None) -> ClassMoments:
    """Moments of one batch, in two passes: first the means, then the deviations from them.

    Sums are scattered by label, so the cost does not grow with the number of classes. Labels on
    the CPU are always checked; labels on an accelerator only when ``num_classes`` is None, because
    only then is a round trip to the host due in any case.

    Args:
        values: activations of any real dtype, shape (B, N, P); P is 1 for a linear layer.
        labels: class of each sample, integers in [0, C), shape (B,), on the values' device.
        num_classes: C; None: the largest label of this batch plus one.

    Returns:
        Moments over C classes on the values' device; all zero for an empty batch.

    Raises:
        ValueError: if shapes or dtypes do not fit, a label is out of range, or the batch is empty
            and ``num_classes`` is None.
    """
    if values.ndim != 3 or labels.shape != values.shape[:1]:
        raise ValueError(
            f"values have shape {_shape(values)} and labels {_shape(labels)}; "
            "they must be (B, N, P) and (B,): flatten the positions of a map into one axis"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}; they must be integer class indices")
    labels = labels.long()
    if num_classes is None:
        if labels.numel() == 0:
            raise ValueError("the batch is empty, so its classes are unknown; pass num_classes")
        num_classes = int(labels.max()) + 1
        _check_range(labels, num_classes)
    elif labels.device.type == "cpu":
        _check_range(labels, num_classes)

    count = torch.zeros(num_classes, dtype=torch.int64, device=values.device)
    count.index_add_(0, labels, torch.ones_like(labels))
    values = values.to(torch.float64)
    mean = values.new_zeros(num_classes, *values.shape[1:])
    mean.index_add_(0, labels, values)
    mean /= count.clamp(min=1)[:, None, None]
    deviations = values - mean[labels]
    m2 = torch.zeros_like(mean).index_add_(0, labels, deviations.square_())
    return ClassMoments(count=count, mean=mean, m2=m2)


def merge_moments(a: ClassMoments, b: ClassMoments) -> ClassMoments:
    """Moments of the union of two disjoint sets of samples.

    Every term is a sum of squares, so nothing cancels, whatever the mean and however many merges.

    Args:
        a: moments over any number of classes.
        b: moments of the same N and P; the classes that only one side knows are taken as they are.

    Returns:
        Moments over the larger of the two numbers of classes.

    Raises:
        ValueError: if N or P differs.

    References:
        T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979.
    """
    if a.mean.shape[1:] != b.mean.shape[1:]:
        raise ValueError(
            f"moments of {a.num_channels} channels at {a.num_positions} positions cannot be merged "
            f"with moments of {b.num_channels} channels at {b.num_positions} positions; "
            "merge only what one layer gave for inputs of one size"
        )
    num_classes = max(a.num_classes, b.num_classes)
    a, b = _pad_classes(a, num_classes), _pad_classes(b, num_classes)
    count = a.count + b.count
    share_b = (b.count / count.clamp(min=1).to(torch.float64))[:, None, None]
    delta = b.mean - a.mean
    between = delta.square() * share_b * a.count[:, None, None]
    return ClassMoments(count=count, mean=a.mean + delta * share_b, m2=a.m2 + b.m2 + between)


def _pad_classes(moments: ClassMoments, num_classes: int) -> ClassMoments:
    missing = num_classes - moments.num_classes
    if missing == 0:
        return moments
    empty = moments.mean.new_zeros(missing, moments.num_channels, moments.num_positions)
    return ClassMoments(
        count=torch.cat([moments.count, moments.count.new_zeros(missing)]),
        mean=torch.cat([moments.mean, empty]),
        m2=torch.cat([moments.m2, empty]),
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
