"""From a batch of the user's data loader to inputs and class labels."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.structure.example import Example
from acsp_lightning.structure.randomness import random_state_restored

BatchReader = Callable[[Any], tuple[Any, Tensor]]

"""A function of one batch that returns the network's inputs and the labels, integers (B,)."""

INPUT_KEYS = ("image", "x", "pixel_values")

LABEL_KEYS = ("label", "y", "labels")

MOST_CLASSES = 100_000

NAMED = 10  # classes in a message


def read_batch(batch: Any) -> tuple[Any, Tensor]:
    """Split the usual kinds of batches.

    These are ``(x, y)``, and dicts with one of ``image``, ``x`` and ``pixel_values``, and with one of
    ``label``, ``y`` and ``labels``.

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
        "are (x, y) and a dict with one of 'image', 'x', 'pixel_values' and one of 'label', 'y', "
        "'labels'. For any other batch pass read_batch=, a function of the batch that returns (inputs, "
        "labels)."
    )


def read_with(reader: BatchReader, batch: Any) -> tuple[Any, Any]:
    """The inputs and the labels that a reader finds in a batch; the labels are not checked.

    Raises:
        ValueError: if it returns something else.
    """
    found: Any = reader(batch)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise ValueError(
            f"read_batch returned {_describe(found)}; it must return (inputs, labels): what forward "
            "takes, and one integer class index per sample."
        )
    return found[0], found[1]


def read_labelled(reader: BatchReader, batch: Any) -> tuple[Any, Tensor]:
    """The inputs and the labels that a reader finds in a batch, both checked.

    Raises:
        ValueError: as :func:`read_with` and :func:`check_labels`.
    """
    inputs, labels = read_with(reader, batch)
    return inputs, check_labels(labels)


def check_labels(labels: Any) -> Tensor:
    """The labels as int64 class indices, shape (B,).

    Raises:
        ValueError: if they are not one integer in [0, ``MOST_CLASSES``) for each sample: the message
            says which other kind of labels they seem to be, and how to get classes.
    """
    wanted = "Pruning needs one integer class index per sample, shape (B,), counted from 0"
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"Labels are a {type(labels).__name__}. {wanted}: return them as a tensor from read_batch=."
        )
    shape = tuple(labels.shape)
    if labels.ndim != 1:
        raise ValueError(f"Labels have shape {shape}, {_of_other_shape(labels)}. {wanted}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"Labels are {labels.dtype} of shape {shape}. {wanted}: {_cast(labels)}.")
    indices: Tensor = labels.long()
    if not len(indices):
        return indices
    least, largest = int(indices.min()), int(indices.max())
    if least < 0:
        raise ValueError(
            f"Labels contain {least} (a mark of samples to be ignored?). {wanted}, and every sample "
            "that the network sees has to have one: leave those without a class out of the validation "
            "data."
        )
    if largest >= MOST_CLASSES:
        raise ValueError(
            f"Labels contain {largest:,} (an identifier?). {wanted} and below {MOST_CLASSES:,}, since "
            "all numbers up to the largest have a row in memory: number the classes 0, 1, 2, ... in the "
            "data set or in read_batch=."
        )
    return indices


def _of_other_shape(labels: Tensor) -> str:
    """What labels with other than one axis may be, and what to do with them."""
    if labels.ndim == 0:
        return "a single number for the whole batch: return one for each sample from read_batch="
    if labels.ndim > 2:
        return (
            "a class for every pixel (a segmentation mask?): return one for the whole image from "
            "read_batch=, such as the class of most of its pixels"
        )
    if labels.shape[1] == 1:
        cast = "" if _is_integer(labels) else ".long()"
        return f"a column: return labels.squeeze(1){cast} from read_batch="
    if bool(((labels.sum(1) - 1).abs() < 1e-3).all()) and bool((labels >= 0).all()):
        return "one-hot rows, or probabilities: return labels.argmax(dim=1) from read_batch="
    return (
        "several for each sample: of multi-label and multi-task targets return those of one task from "
        "read_batch="
    )


def _cast(labels: Tensor) -> str:
    """How to convert numbers of another type to class indices."""
    if labels.dtype == torch.bool or (not labels.is_complex() and torch.equal(labels, labels.round())):
        return "return labels.long() from read_batch="
    return "targets of a regression have no classes; return some of your own from read_batch="


def _is_integer(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def count_classes(labels: Tensor) -> int:
    """Check that the classes can be separated, and return their number.

    A class with a single sample, which has no variance, counts as absent.

    Args:
        labels: class indices of all samples, int64, shape (samples,).

    Returns:
        C, the largest index plus one.

    Raises:
        ValueError: if fewer than two classes have two samples.
    """
    counts = labels.bincount()
    usable = (counts > 1).nonzero().flatten().tolist()
    if len(usable) < 2:
        seen = int((counts > 0).sum())
        if not seen:
            found = "no sample"
        elif seen == 1:
            found = f"only class {int(counts.argmax())}"
        elif usable:
            found = f"two samples or more of class {usable[0]} alone, one of {seen - 1} others"
        else:
            found = f"one sample of each of {seen} classes"
        raise ValueError(
            f"The validation batches to be captured hold {found}; separation needs at least two "
            "classes, of two samples each. Validate on more of the data, or raise max_batches."
        )
    return len(counts)


def rare_classes(labels: Tensor) -> str | None:
    """A warning that names the classes with a single sample; None if there are none."""
    single = (labels.bincount() == 1).nonzero().flatten().tolist()
    if not single:
        return None
    names = ", ".join(map(str, single[:NAMED]))
    more = f" and {len(single) - NAMED} more" if len(single) > NAMED else ""
    return (
        "Classes with a single sample in the validation batches to be captured count as absent, since a "
        f"variance needs two: class {names}{more}. Validate on more of the data, or raise max_batches, "
        "to have them compared."
    )


def survey(
    model: nn.Module, batches: Iterable[Any], read_batch: BatchReader
) -> tuple[Example | None, Tensor]:
    """An example from the first of the batches to be captured, if there is any, and all labels.

    Raises:
        ValueError: if labels are not classes, or a batch cannot be read.
    """
    example: Example | None = None
    labels = [torch.empty(0, dtype=torch.int64)]
    with random_state_restored():
        for batch in batches:
            inputs, found = read_labelled(read_batch, batch)
            labels.append(found.cpu())
            example = example or Example.of(model, inputs)
    return example, torch.cat(labels)


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with keys {sorted(map(str, batch))}"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)} items"
    return f"a {type(batch).__name__}"
