"""Extra passes over the user's data: a network's accuracy, and its BatchNorm statistics."""

from collections.abc import Iterable
from functools import partial
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
    """Arguments of ``model`` for the first samples of some batches, all at once.

    Args:
        model: whose arguments they are.
        batches: read until there are enough samples; those whose tensors are of another size than the
            first batch's are passed over.
        read_batch: splits a batch into inputs and labels.
        samples: at most this many.

    Returns:
        The arguments; None if there is no batch.
    """
    taken: list[Any] = []
    shapes: list[Any] = []
    left = samples
    for batch in batches:
        inputs, labels = read_batch(batch)
        arguments = tree_map(partial(_first, count=left), as_arguments(model, inputs))
        found = [leaf.shape[1:] for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        if not taken or found == shapes:
            shapes = found
            taken.append(arguments)
            left -= len(labels)
        if left <= 0:
            break
    if not taken:
        return None
    joined: tuple[Any, ...] = tree_map(
        lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *taken
    )
    return joined


def _first(leaf: Any, count: int) -> Any:
    return leaf[:count] if isinstance(leaf, Tensor) else leaf


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
