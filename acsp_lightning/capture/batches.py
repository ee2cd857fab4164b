"""From a batch of the user's data loader to inputs and class labels."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

BatchReader = Callable[[Any], tuple[Any, Tensor]]

"""A function of one batch that returns the network's inputs and the labels, integers (B,)."""

INPUT_KEYS = ("image", "x")

LABEL_KEYS = ("label", "y")


def read_batch(batch: Any) -> tuple[Any, Tensor]:
    """Split the usual kinds of batches: ``(x, y)`` and ``{"image" or "x", "label" or "y"}``.

    Returns:
        The network's inputs, unchanged, and the labels.

    Raises:
        ValueError: if the batch is of another kind; the message says what it holds and how to read it.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        inputs = [key for key in INPUT_KEYS if key in batch]
        labels = [key for key in LABEL_KEYS if key in batch]
        if len(inputs) == len(labels) == 1:
            return batch[inputs[0]], batch[labels[0]]
    raise ValueError(
        f"Cannot tell inputs from labels in a validation batch that is {_describe(batch)}. Understood "
        "are (x, y) and a dict with one of 'image', 'x' and one of 'label', 'y'. For any other batch "
        "pass read_batch=, a function of the batch that returns (inputs, labels)."
    )


def check_labels(labels: Any) -> Tensor:
    """The labels as int64 class indices, shape (B,).

    Raises:
        ValueError: if they are not one non-negative integer for each sample (floats, one-hot rows,
            several labels for a sample, or a negative index that marks samples to be ignored).
    """
    wanted = "Pruning needs one integer class index per sample, shape (B,)"
    if not isinstance(labels, Tensor):
        raise ValueError(f"Labels are a {type(labels).__name__}. {wanted}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"Labels are {labels.dtype} of shape {tuple(labels.shape)}. {wanted}; for regression and "
            "multi-label targets classes are not defined. Pass read_batch= to derive them."
        )
    if labels.ndim != 1:
        raise ValueError(
            f"Labels have shape {tuple(labels.shape)} (one-hot, or several per sample?). {wanted}; "
            "pass read_batch= to derive it, for example labels.argmax(dim=1)."
        )
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"Labels contain {int(labels.min())}. {wanted}, counted from 0.")
    return labels.long()


def count_classes(labels: Tensor) -> int:
    """Check that the classes can be separated, and return their number.

    Args:
        labels: class indices of all samples, int64, shape (samples,).

    Returns:
        C, the largest index plus one.

    Raises:
        ValueError: if there are fewer than two classes, or a class has a single sample.
    """
    counts = labels.bincount()
    if int((counts > 0).sum()) < 2:
        found = f"only class {int(counts.argmax())}" if len(labels) else "no sample"
        raise ValueError(
            f"The validation batches to be captured hold {found}; separation needs at least two "
            "classes. Validate on more of the data, or raise max_batches."
        )
    single = (counts == 1).nonzero().flatten().tolist()
    if single:
        raise ValueError(
            f"The validation batches to be captured hold one sample of class {single[0]} "
            f"({len(single)} such classes); a variance needs at least 2. Validate on more of the data, "
            "or raise max_batches."
        )
    return len(counts)


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with keys {sorted(map(str, batch))}"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)} items"
    return f"a {type(batch).__name__}"
