"""A refit to a part of its samples, in less time."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from acsp_lightning.structure.refit import Refit
from acsp_lightning.structure.targets import Target, join_parts


def thinned(refit: Refit, step: int) -> Refit:
    """The same refit with every ``step``-th sample; of norms and power, with all.

    Batches are joined, to no more samples than the largest has. Where samples cannot be told apart, or
    what is no sample differs between batches, every ``step``-th batch is left.
    """
    counts = _sample_counts(refit)
    if counts is None:
        targets = {
            layer: replace(target, parts=target.parts[::step]) for layer, target in refit.targets.items()
        }
        return replace(refit, inputs=refit.inputs[::step], targets=targets)
    # The first sample of each batch that stays.
    firsts = [-before % step for before in accumulate(counts, initial=0)][: len(counts)]
    sizes = [len(range(first, count, step)) for first, count in zip(firsts, counts, strict=True)]
    joined = _packed(sizes, max(counts))

    def thin(target: Target) -> Target:
        parts = [
            join_parts([target.parts[place].thinned(firsts[place], step) for place in places])
            for places in joined
        ]
        return replace(target, parts=parts)

    targets = {layer: thin(target) for layer, target in refit.targets.items()}
    return replace(refit, inputs=_Thinned(refit.inputs, joined, firsts, step), targets=targets)


def _sample_counts(refit: Refit) -> list[int] | None:
    """Samples by batch; None where not every argument and layer has a row or map for each.

    Neither where batches differ in more than their samples.
    """
    counts, kinds = [], set()
    for place, batch in enumerate(refit.inputs):
        leaves, structure = tree_flatten(batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(tensor.layout is not torch.strided or tensor.is_nested for tensor in tensors):
            return None
        rows = {target.parts[place].shape[0] for target in refit.targets.values()}
        if {tensor.shape[:1] for tensor in tensors} != {torch.Size([count]) for count in rows}:
            return None
        counts.append(len(tensors[0]))
        kinds.add((str(structure), *map(_kind_of, leaves)))
    maps = [len({part.shape[1:] for part in target.parts}) for target in refit.targets.values()]
    return counts if max([len(kinds), *maps]) == 1 else None


def _kind_of(leaf: Any) -> object:
    """What two leaves have in common that may be joined: the size of a sample, or all of it."""
    if isinstance(leaf, Tensor):
        return leaf.shape[1:], leaf.dtype
    is_plain = leaf is None or isinstance(leaf, bool | int | float | str)
    return (type(leaf), leaf) if is_plain else id(leaf)


def _packed(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Places in order, as many together as have at most ``most`` samples; those without any left out."""
    packed: list[list[int]] = []
    room = 0
    for place, size in enumerate(sizes):
        if not size:
            continue
        if size > room:
            packed.append([])
            room = most
        packed[-1].append(place)
        room -= size
    return packed


class _Thinned(Sequence[tuple[Any, ...]]):
    """Every ``step``-th sample of some batches, fetched when they are needed, wherever the others rest.

    Args:
        batches: arguments of forward, by batch.
        places: which of them are joined, by batch of the result.
        firsts: the first sample of each that is taken.
        step: from it to the next.
    """

    def __init__(
        self,
        batches: Sequence[tuple[Any, ...]],
        places: Sequence[Sequence[int]],
        firsts: Sequence[int],
        step: int,
    ) -> None:
        self._batches = batches
        self._places = places
        self._firsts = firsts
        self._step = step

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _Thinned(self._batches, self._places[place], self._firsts, self._step)
        found = []
        for one in self._places[place]:
            leaves, structure = tree_flatten(self._batches[one])
            rows = slice(self._firsts[one], None, self._step)
            found.append([leaf[rows] if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        joined = [
            torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
            for parts in zip(*found, strict=True)
        ]
        return tree_unflatten(joined, structure)
