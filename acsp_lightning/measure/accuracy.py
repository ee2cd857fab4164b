"""Top-1 accuracy of a network, as counts of samples."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.capture.batches import BatchReader, check_labels
from acsp_lightning.structure.default_dtype import default_dtype
from acsp_lightning.structure.evaluation import evaluation_state
from acsp_lightning.structure.example import as_arguments
from acsp_lightning.structure.forward import run_forward

# With a class as the type of what it returns, jsonargparse would refuse functions without annotations.
OutputReader = Callable[[Any], Any]

"""A function of the outputs of forward that returns class scores, (B, C), or None."""


def is_at_chance(accuracy: float, samples: int, classes: int) -> bool:
    """Whether an accuracy is at most a standard error above that of guessing among equal classes.

    Args:
        accuracy: top-1 accuracy, in [0, 1].
        samples: number of samples that it was measured on.
        classes: number of classes.
    """
    chance = 1 / classes
    error = math.sqrt(chance * (1 - chance) / samples)
    return accuracy <= chance + error


def class_scores(
    outputs: Any, read_outputs: OutputReader | None = None, largest: int = 1
) -> Tensor | None:
    """Class scores (B, C) in the outputs of forward; None if there are none.

    Without ``read_outputs`` they are the outputs themselves, if these are a tensor, or else their key
    or attribute ``logits``. With two classes, a single score per sample, shape (B,) or (B, 1), is the
    logit of class 1 against class 0.

    Args:
        outputs: outputs of forward.
        read_outputs: finds the scores in them; None: as above.
        largest: the largest label, to tell a logit from other numbers.

    Raises:
        ValueError: if ``read_outputs`` returns anything but such scores or None.
    """
    found: Any = _logits(outputs) if read_outputs is None else read_outputs(outputs)
    if found is None:
        return None
    if (
        isinstance(found, Tensor)
        and found.is_floating_point()
        and found.ndim in (1, 2)
        and found.numel()
    ):
        if found.ndim == 2 and found.shape[1] > 1:
            return found
        logit = found.flatten()
        return torch.stack([torch.zeros_like(logit), logit], 1) if largest <= 1 else None
    if read_outputs is not None:
        kind = (
            f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else "no tensor"
        )
        raise ValueError(
            f"read_outputs returned a {type(found).__name__} ({kind}); it must return a floating-point "
            "tensor, class scores (B, C) or one logit for each sample (B,), or None if there is none."
        )
    return None


def _logits(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits")
    return getattr(outputs, "logits", None)


def check_outputs(
    model: nn.Module,
    inputs: tuple[Any, ...],
    labels: Tensor,
    read_outputs: OutputReader | None = None,
) -> bool:
    """Whether forward returns class scores.

    Args:
        model: left unchanged.
        inputs: arguments of forward.
        labels: class indices of all samples, int64, at least one.
        read_outputs: finds class scores in the outputs; None: as :func:`class_scores`.

    Raises:
        ValueError: if it does, but returns none for some of the labels.
    """
    least, largest = int(labels.min()), int(labels.max())
    with evaluation_state(model):
        scores = class_scores(run_forward(model, inputs), read_outputs, largest)
    classes = largest + 1 if scores is None else scores.shape[1]
    if largest < classes:
        return scores is not None
    if least >= 1 and largest == classes:
        raise ValueError(
            f"Labels run from {least} to {largest}, and forward gives scores of {classes} classes, "
            "which are counted from 0. Return labels - 1 from read_batch=, and train with the same."
        )
    raise ValueError(
        f"Labels contain {largest}, and forward gives scores of {classes} classes, 0 to {classes - 1}. "
        "Give the network an output for every class, or map the labels in read_batch=. If these are no "
        "class scores (an embedding), pass read_outputs=, a function of what forward returns that "
        "returns class scores (B, C), or None if there are none."
    )


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Samples of every class, and how many of them were classified correctly.

    Attributes:
        right: correctly classified samples by class, int64, (C,).
        seen: samples by class, int64, (C,).
    """

    right: Tensor
    seen: Tensor

    @property
    def accuracy(self) -> float:
        """Share of all samples that is right, in [0, 1]; NaN without samples."""
        samples = int(self.seen.sum())
        return int(self.right.sum()) / samples if samples else float("nan")

    def __add__(self, other: "ClassCounts") -> "ClassCounts":
        """The counts of disjoint samples together."""
        return ClassCounts(_sum(self.right, other.right), _sum(self.seen, other.seen))


def _sum(one: Tensor, other: Tensor) -> Tensor:
    short, long = sorted((one, other), key=len)
    total = long.clone()
    total[: len(short)] += short
    return total


def count_correct(
    model: nn.Module,
    batches: Iterable[Any],
    read_batch: BatchReader,
    read_outputs: OutputReader | None = None,
) -> tuple[int, int] | None:
    """Count the samples that ``model`` classifies correctly (top 1), and all samples.

    Arguments as in :func:`count_by_class`.

    Returns:
        Two counts, which can be summed over processes; None if forward returns something else than
        class scores.
    """
    counts = count_by_class(model, batches, read_batch, read_outputs)
    return None if counts is None else (int(counts.right.sum()), int(counts.seen.sum()))


def count_by_class(
    model: nn.Module,
    batches: Iterable[Any],
    read_batch: BatchReader,
    read_outputs: OutputReader | None = None,
) -> ClassCounts | None:
    """Count the samples of every class, and those that ``model`` classifies correctly (top 1).

    Args:
        model: run in eval mode and restored.
        batches: on the device of the model.
        read_batch: splits a batch into inputs and labels.
        read_outputs: finds class scores in the outputs; None: as :func:`class_scores`.

    Returns:
        Counts of as many classes as there are scores, and of one more for all labels beyond them, if
        there are any; None if forward returns something else than class scores.
    """
    total, largest = ClassCounts(*torch.zeros(2, 0, dtype=torch.int64)), 1
    with evaluation_state(model):
        for batch in batches:
            inputs, labels = read_batch(batch)
            labels = check_labels(labels)
            largest = max(largest, int(labels.max()) if len(labels) else 0)
            with default_dtype(model):
                outputs = model(*as_arguments(model, inputs))
            scores = class_scores(outputs, read_outputs, largest)
            if scores is None or len(scores) != len(labels):
                return None
            right, labels = (scores.argmax(1) == labels).cpu(), labels.cpu().clamp(max=scores.shape[1])
            classes = max(scores.shape[1], int(labels.max()) + 1)
            total += ClassCounts(
                labels[right].bincount(minlength=classes), labels.bincount(minlength=classes)
            )
    return total
