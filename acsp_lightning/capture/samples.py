"""Samples from validation batches, joined into one batch of arguments of forward and labels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from acsp_lightning.capture.batches import BatchReader
from acsp_lightning.structure.example import as_arguments
from acsp_lightning.structure.forward import is_batched

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
        self._leaves: list[Any] = []  # of the samples kept, arguments and labels
        self._kind: _Kind | None = None
        self._count = 0
        self._before = 0
        self._seen = 0
        self._stride = 1

    def add(self, arguments: tuple[Any, ...], labels: Tensor) -> None:
        """Take samples of a batch; one whose tensors are of another size than the first's is skipped."""
        rows = torch.arange(len(labels))
        if self._among is not None:
            rows = rows[self._among(self._before, len(labels))]
        self._before += len(labels)
        leaves, structure = tree_flatten((arguments, labels))
        kind = _Kind.of(leaves, structure, len(labels))
        if self._kind is not None and kind != self._kind:
            return
        chosen = rows[-self._seen % self._stride :: self._stride]
        self._seen += len(rows)
        found = _rows(leaves, kind, chosen)
        if self._kind is None:
            self._kind, self._leaves = kind, found
        else:
            self._leaves = [
                old if size is None else torch.cat([old, new])
                for old, new, size in zip(self._leaves, found, kind.sizes, strict=True)
            ]
        self._count += len(chosen)
        while self._count >= 2 * self._most:
            self._leaves = _rows(self._leaves, kind, torch.arange(0, self._count, 2))
            self._stride *= 2
            self._count = (self._count + 1) // 2

    @property
    def samples(self) -> Samples | None:
        """The samples; None if there are none."""
        if self._kind is None or not self._count:
            return None
        spaced = torch.linspace(0, self._count - 1, min(self._count, self._most))
        found = _rows(self._leaves, self._kind, spaced.round().long())
        joined: Samples = tree_unflatten(found, self._kind.structure)
        return joined


@dataclass(frozen=True, slots=True)
class _Kind:
    """What batches have in common whose samples can be joined.

    Attributes:
        structure: of arguments and labels.
        sizes: of a sample in every leaf; None: the leaf has no row for each sample.
    """

    structure: TreeSpec
    sizes: tuple[torch.Size | None, ...]

    @classmethod
    def of(cls, leaves: Iterable[Any], structure: TreeSpec, samples: int) -> "_Kind":
        """That of a batch."""
        sizes = (leaf.shape[1:] if is_batched(leaf, samples) else None for leaf in leaves)
        return cls(structure, tuple(sizes))


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


def _rows(leaves: Iterable[Any], kind: _Kind, rows: Tensor) -> list[Any]:
    """Some samples of all leaves that have samples."""
    return [
        leaf if size is None else leaf[rows.to(leaf.device)]
        for leaf, size in zip(leaves, kind.sizes, strict=True)
    ]
