"""Samples from validation batches, joined into one batch of arguments of forward."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from acsp_lightning.capture.batches import BatchReader
from acsp_lightning.structure.example import as_arguments


def collect_inputs(
    model: nn.Module, batches: Iterable[Any], read_batch: BatchReader, samples: int
) -> tuple[Any, ...] | None:
    """Collect evenly spaced samples from batches, as one batch of arguments of ``model``.

    Evenly spaced, because loaders are often sorted by class.

    Args:
        model: network that takes the arguments.
        batches: read to the end; those whose tensors are of another size than the first batch's are
            skipped.
        read_batch: splits a batch into inputs and labels.
        samples: at most this many, at least 1.

    Returns:
        The arguments; None if there is no batch.
    """
    kept: tuple[Any, ...] | None = None
    count, seen, stride = 0, 0, 1
    for batch in batches:
        inputs, labels = read_batch(batch)
        arguments = as_arguments(model, inputs)
        if kept is not None and _shapes(arguments) != _shapes(kept):
            continue
        chosen = torch.arange(min(-seen % stride, len(labels)), len(labels), stride)
        seen += len(labels)
        arguments = _rows(arguments, chosen)
        kept = arguments if kept is None else tree_map(_joined, kept, arguments)
        count += len(chosen)
        while count >= 2 * samples:
            kept, stride = _rows(kept, torch.arange(0, count, 2)), 2 * stride
            count = (count + 1) // 2
    if kept is None:
        return None
    return _rows(kept, torch.linspace(0, count - 1, min(count, samples)).round().long())


def _shapes(arguments: tuple[Any, ...]) -> list[torch.Size]:
    return [leaf.shape[1:] for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def _rows(arguments: tuple[Any, ...], rows: Tensor) -> tuple[Any, ...]:
    picked: tuple[Any, ...] = tree_map(
        lambda leaf: leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) else leaf, arguments
    )
    return picked


def _joined(first: Any, second: Any) -> Any:
    return torch.cat([first, second]) if isinstance(first, Tensor) else first
