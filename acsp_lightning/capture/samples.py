"""Samples from validation batches, joined into one batch of arguments of forward and labels."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from acsp_lightning.capture.batches import BatchReader
from acsp_lightning.structure.example import as_arguments

Samples = tuple[tuple[Any, ...], Tensor]
"""Arguments of forward, for all samples at once, and their labels."""


class SampleCollector:
    """Collects evenly spaced samples from batches.

    Evenly spaced, because loaders are often sorted by class.

    Args:
        samples: at most this many, at least 1.
        among: tells which of some consecutive samples may be taken, bool (count,), from the number of
            samples before them and their own number; None: all.
    """

    def __init__(self, samples: int, among: Callable[[int, int], Tensor] | None = None) -> None:
        self._most = samples
        self._among = among
        self._kept: Samples | None = None
        self._count = 0
        self._before = 0
        self._seen = 0
        self._stride = 1

    def add(self, arguments: tuple[Any, ...], labels: Tensor) -> None:
        """Take samples of a batch; one whose tensors are of another size than the first's is skipped."""
        found = (arguments, labels)
        rows = torch.arange(len(labels))
        if self._among is not None:
            rows = rows[self._among(self._before, len(labels))]
        self._before += len(labels)
        if self._kept is not None and _shapes(found) != _shapes(self._kept):
            return
        chosen = rows[-self._seen % self._stride :: self._stride]
        self._seen += len(rows)
        found = _rows(found, chosen)
        self._kept = found if self._kept is None else tree_map(_joined, self._kept, found)
        self._count += len(chosen)
        while self._count >= 2 * self._most:
            self._kept = _rows(self._kept, torch.arange(0, self._count, 2))
            self._stride *= 2
            self._count = (self._count + 1) // 2

    @property
    def samples(self) -> Samples | None:
        """The samples; None if there are none."""
        if self._kept is None or not self._count:
            return None
        spaced = torch.linspace(0, self._count - 1, min(self._count, self._most))
        return _rows(self._kept, spaced.round().long())


def collect_samples(
    model: nn.Module,
    batches: Iterable[Any],
    read_batch: BatchReader,
    *collectors: SampleCollector,
) -> None:
    """Let collectors take their samples of the same batches.

    Args:
        model: network that takes the inputs.
        batches: read to the end.
        read_batch: splits a batch into inputs and labels.
        collectors: take the samples.
    """
    for batch in batches:
        inputs, labels = read_batch(batch)
        arguments = as_arguments(model, inputs)
        for collector in collectors:
            collector.add(arguments, labels)


def _shapes(samples: Samples) -> list[torch.Size]:
    return [leaf.shape[1:] for leaf in tree_leaves(samples) if isinstance(leaf, Tensor)]


def _rows(samples: Samples, rows: Tensor) -> Samples:
    picked: Samples = tree_map(
        lambda leaf: leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) else leaf, samples
    )
    return picked


def _joined(first: Any, second: Any) -> Any:
    return torch.cat([first, second]) if isinstance(first, Tensor) else first
