"""Extra passes over the user's data: a network's accuracy, and its BatchNorm statistics."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from acsp_lightning.batches import BatchReader, as_arguments, check_labels
from acsp_lightning.structure.forward import evaluation_state


def count_correct(
    model: nn.Module, batches: Iterable[Any], read_batch: BatchReader
) -> tuple[int, int] | None:
    """How many samples ``model`` classifies rightly (top 1), and of how many.

    Args:
        model: ``model(inputs)`` gives logits (B, C); run in eval mode, left as it was.
        batches: on the device of the model.
        read_batch: splits a batch into inputs and labels.

    Returns:
        Two counts, which add up over processes; None if forward gives something else than logits.
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


def collect_inputs(
    model: nn.Module, batches: Iterable[Any], read_batch: BatchReader, samples: int
) -> tuple[Any, ...] | None:
    """Arguments of ``model`` for samples from all over some batches, all at once.

    Evenly spaced, because loaders often give one class after the other.

    Args:
        model: whose arguments they are.
        batches: read to the end; those whose tensors are of another size than the first batch's are
            passed over.
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


def recalibrate_batchnorm(model: nn.Module, inputs: Iterable[Any], batches: int) -> None:
    """Estimate the running statistics of the BatchNorm layers afresh, all others in eval mode.

    Means and unbiased variances of the batches are averaged, every batch counting alike. Layers in
    eval mode (frozen by the user) keep theirs, and so do all if there is no batch.

    Args:
        model: the network; everything but the running statistics is left as it was.
        inputs: arguments of ``model``, on its device.
        batches: how many to average over, at least 1; fewer if ``inputs`` ends before.
    """
    live = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [module.momentum for module in live]
    with evaluation_state(model), torch.no_grad():
        try:
            for place, batch in enumerate(islice(inputs, batches)):
                for module in live:
                    module.training = True
                    # The n-th batch enters with weight 1/n, which makes the average a plain mean.
                    module.momentum = 1 / (place + 1)
                model(*as_arguments(model, batch))
        finally:
            for module, momentum in zip(live, momenta, strict=True):
                module.momentum = momentum
