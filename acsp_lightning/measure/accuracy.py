"""Top-1 accuracy of a network, as counts of samples."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from acsp_lightning.capture.batches import BatchReader, check_labels
from acsp_lightning.structure.example import as_arguments
from acsp_lightning.structure.forward import evaluation_state


def count_correct(
    model: nn.Module, batches: Iterable[Any], read_batch: BatchReader
) -> tuple[int, int] | None:
    """Count the samples that ``model`` classifies correctly (top 1), and all samples.

    Args:
        model: ``model(inputs)`` gives logits (B, C); run in eval mode, left as it was.
        batches: on the device of the model.
        read_batch: splits a batch into inputs and labels.

    Returns:
        Two counts, which can be summed over processes; None if forward returns something else than
        logits.
    """
    right, seen = 0, 0
    with evaluation_state(model):
        for batch in batches:
            inputs, labels = read_batch(batch)
            labels = check_labels(labels)
            logits = model(*as_arguments(model, inputs))
            if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
                return None
            right += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
    return right, seen
