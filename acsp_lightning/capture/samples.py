"""Samples from validation batches: arguments of forward, in batches of the same size, and labels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from acsp_lightning.capture.batches import BatchReader
from acsp_lightning.structure.example import as_arguments
from acsp_lightning.structure.inputs import is_batched, sample_count
from acsp_lightning.structure.randomness import random_state_restored
from acsp_lightning.structure.store import Kept, Store

Samples = tuple[Sequence[tuple[Any, ...]], Tensor]
"""Arguments of forward, by batch, and the labels of all samples."""


# Samples for a refit where nobody says how many: the more the better, but each takes several passes.
# So of large ones (images from 74 px on) there are as many as fit in these bytes, or the least.
MOST, LEAST, BYTES = 2048, 512, 2**27


class SampleBatches(Sequence[tuple[Any, ...]]):
    """Arguments of forward, by batch: kept on the CPU, and moved one batch at a time.

    Args:
        batches: leaves of each, of which tensors are in a :class:`Store`.
        structure: of the leaves.
        devices: where they are needed; None: the leaf is no tensor.
    """

    def __init__(
        self,
        batches: Sequence[Sequence[Any]],
        structure: TreeSpec,
        devices: Sequence[torch.device | None],
    ) -> None:
        self._batches = batches
        self._structure = structure
        self._devices = devices

    @property
    def resting(self) -> Iterator[tuple[Any, ...]]:
        """The batches on the CPU."""
        return (self._read(leaves) for leaves in self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return SampleBatches(self._batches[place], self._structure, self._devices)
        leaves = tree_leaves(self._read(self._batches[place]))
        moved = [
            leaf if device is None else leaf.to(device)
            for leaf, device in zip(leaves, self._devices, strict=True)
        ]
        return tree_unflatten(moved, self._structure)

    def _read(self, leaves: Iterable[Any]) -> Any:
        return tree_unflatten(
            [leaf.tensor if isinstance(leaf, Kept) else leaf for leaf in leaves], self._structure
        )


class SampleCollector:
    """Collects evenly spaced samples from batches.

    Evenly spaced, because loaders are often sorted by class. On the CPU, whatever the device, and in the
    end in a :class:`Store`: they may be many, and are needed a batch at a time.

    Args:
        samples: at most this many, at least 1; None: 512 to 2,048, as many as fit in 128 MB.
        among: tells which of some consecutive samples may be taken, bool (count,), from the number of
            samples before them and their own number; None: all.
        device: where they are needed; None: where they come from.
        collectors: how many take their shares of these samples.

    Attributes:
        samples: after :meth:`finish`, in batches of the size of the largest that was seen; None if there
            are none.
    """

    def __init__(
        self,
        samples: int | None,
        among: Callable[[int, int], Tensor] | None = None,
        device: torch.device | None = None,
        collectors: int = 1,
    ) -> None:
        self.samples: Samples | None = None
        self._wanted = samples
        self._most = 0
        self._collectors = collectors
        self._device = device
        self._among = among
        self._parts: list[list[Any]] = []  # leaves of the samples kept, by batch
        self._counts: list[int] = []
        self._kind: _Kind | None = None
        self._devices: list[torch.device | None] = []
        self._largest = 0  # batch
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
        if self._kind is None:
            self._kind = kind
            wanted = kind.usual_samples if self._wanted is None else self._wanted
            self._most = -(-wanted // self._collectors)
            self._devices = [
                (self._device or leaf.device) if isinstance(leaf, Tensor) else None for leaf in leaves
            ]
        if kind != self._kind:
            return
        self._largest = max(self._largest, len(labels))
        chosen = rows[-self._seen % self._stride :: self._stride]
        self._seen += len(rows)
        if not len(chosen):
            return
        self._parts.append(_rows(leaves, kind, chosen))
        self._counts.append(len(chosen))
        while sum(self._counts) >= 2 * self._most:
            self._keep(torch.arange(0, sum(self._counts), 2))
            self._stride *= 2

    def finish(self) -> None:
        """No batch will come: leave what there is too much of."""
        count = sum(self._counts)
        if count > self._most:
            self._keep(torch.linspace(0, count - 1, self._most).round().long())
        self._join()
        if self._kind is not None and self._counts:
            self.samples = self._stored(self._kind)

    def _stored(self, kind: "_Kind") -> Samples:
        store, batches, labels = Store(), [], []
        arguments, _ = tree_unflatten(self._parts[0], kind.structure)
        structure = tree_flatten(arguments)[1]
        for place in range(len(self._parts)):
            *leaves, known = self._parts[place]
            self._parts[place] = []  # both at once would take twice the memory
            batches.append([store.keep(x) if isinstance(x, Tensor) else x for x in leaves])
            labels.append(known)
        *devices, device = self._devices
        return SampleBatches(batches, structure, devices), torch.cat(labels).to(device)

    def _keep(self, rows: Tensor) -> None:
        """Keep some of the samples, in ascending order."""
        kind, parts, counts, start = self._kind, [], [], 0
        assert kind is not None
        for place, count in enumerate(self._counts):
            mine = rows[(rows >= start) & (rows < start + count)] - start
            if len(mine):
                parts.append(_rows(self._parts[place], kind, mine))
                counts.append(len(mine))
            self._parts[place] = []  # both at once would take twice the memory
            start += count
        self._parts, self._counts = parts, counts

    def _join(self) -> None:
        """Let all parts but the last be as large as the largest batch."""
        if all(count == self._largest for count in self._counts[:-1]):
            return
        kind, old, counts = self._kind, self._parts, self._counts
        assert kind is not None
        self._parts, self._counts = [], []
        waiting: list[list[Any]] = []
        missing = self._largest
        for place, count in enumerate(counts):
            part, start = old[place], 0
            old[place] = []  # both at once would take twice the memory
            while start < count:
                end = min(count, start + missing)
                waiting.append(_rows(part, kind, torch.arange(start, end)))
                missing -= end - start
                start = end
                if not missing or (start == count and place == len(counts) - 1):
                    self._parts.append(_cat(waiting, kind))
                    self._counts.append(self._largest - missing)
                    waiting, missing = [], self._largest


@dataclass(frozen=True, slots=True)
class _Kind:
    """What batches have in common whose samples can be joined.

    Attributes:
        structure: of arguments and labels.
        sizes: of a sample in every leaf; None: the leaf has no row for each sample.
        nbytes: of a sample in all of these leaves.
    """

    structure: TreeSpec
    sizes: tuple[torch.Size | None, ...]
    nbytes: int = field(compare=False)

    @classmethod
    def of(cls, leaves: Iterable[Any], structure: TreeSpec, samples: int) -> "_Kind":
        """That of a batch."""
        leaves = list(leaves)
        sizes = tuple(leaf.shape[1:] if is_batched(leaf, samples) else None for leaf in leaves)
        values = zip(leaves, sizes, strict=True)
        nbytes = sum(size.numel() * leaf.itemsize for leaf, size in values if size is not None)
        return cls(structure, sizes, nbytes)

    @property
    def usual_samples(self) -> int:
        """How many serve a refit: :data:`LEAST` to :data:`MOST`."""
        return min(MOST, max(LEAST, BYTES // max(1, self.nbytes)))


def collect_samples(
    model: nn.Module,
    batches: Iterable[Any],
    read_batch: BatchReader,
    *collectors: SampleCollector,
) -> None:
    """Let collectors take their samples of the same batches; the random state stays as it was.

    Args:
        model: network that takes the inputs.
        batches: read to the end, unless there is no collector.
        read_batch: splits a batch into inputs and labels.
        collectors: take the samples.
    """
    if not collectors:
        return
    with random_state_restored():
        for batch in batches:
            inputs, labels = read_batch(batch)
            arguments = as_arguments(model, inputs)
            for collector in collectors:
                collector.add(arguments, labels)
    for collector in collectors:
        collector.finish()


def by_batch(samples: Samples | None) -> list[tuple[tuple[Any, ...], Tensor]]:
    """Arguments of forward and labels of every batch, on the CPU where they rest."""
    if samples is None:
        return []
    batches, labels = samples
    found = list(batches.resting if isinstance(batches, SampleBatches) else batches)
    return list(zip(found, torch.split(labels, [sample_count(b) for b in found]), strict=True))


def join_samples(
    parts: Iterable[Iterable[tuple[tuple[Any, ...], Tensor]]],
    samples: int | None,
    device: torch.device,
) -> Samples | None:
    """Samples that several processes have read, as :func:`by_batch` gives those of each.

    Args:
        parts: of every process.
        samples: at most this many, evenly spaced; None: 512 to 2,048, as many as fit in 128 MB.
        device: where they are needed.

    Returns:
        The samples; None if there are none.
    """
    collector = SampleCollector(samples, device=device)
    for part in parts:
        for arguments, labels in part:
            collector.add(arguments, labels)
    collector.finish()
    return collector.samples


def _rows(leaves: Iterable[Any], kind: _Kind, rows: Tensor) -> list[Any]:
    """Some samples of all leaves that have samples, and the others, on the CPU."""
    return [
        (leaf.cpu() if isinstance(leaf, Tensor) else leaf)
        if size is None
        else leaf[rows.to(leaf.device)].cpu()
        for leaf, size in zip(leaves, kind.sizes, strict=True)
    ]


def _cat(parts: Sequence[list[Any]], kind: _Kind) -> list[Any]:
    """The samples of several parts, of all leaves that have samples."""
    return [
        found[0] if size is None else torch.cat(found)
        for *found, size in zip(*parts, kind.sizes, strict=True)
    ]
