"""The statistics of all ranks as one, by sums over the ranks: no rank ever holds those of another.

What a rank takes is its own statistics and one layer more, however many ranks there are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from acsp_lightning.capture.statistics import FEW, Activations, InputMoments, check_positions
from acsp_lightning.functional import ClassSums
from acsp_lightning.trainer.ranks import is_distributed, run_on_all_ranks


@dataclass(frozen=True, slots=True)
class Outline:
    """What one rank has captured, without the sums.

    Attributes:
        samples: number of samples.
        outputs: by layer, the shape (C, N, P) of its sums, and their type.
        inputs: by layer, the number of channels, and of vectors.
    """

    samples: int
    outputs: Mapping[str, tuple[torch.Size, torch.dtype]]
    inputs: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, found: Activations) -> Self:
        """That of some statistics."""
        return cls(
            found.samples,
            {layer: (sums.total.shape, sums.total.dtype) for layer, sums in found.outputs.items()},
            {layer: (len(moments.held), moments.count) for layer, moments in found.inputs.items()},
        )


def merge_over_ranks(finish: Callable[[], Activations], device: torch.device) -> Activations:
    """Statistics of all ranks on disjoint samples, the same on every rank.

    Ranks without samples (a process whose share of the data was empty) add nothing.

    Args:
        finish: gives the statistics of this rank, whose tensors are used up; if it fails on one rank,
            it fails on all.
        device: of the network.

    Raises:
        ValueError: if no rank has samples, or the maps of a layer are of several sizes.
    """
    found: list[Activations] = []

    def outline() -> Outline:
        found.append(finish())
        return Outline.of(found[0])

    outlines = run_on_all_ranks(outline)
    seen = [one for one in outlines if one.samples]
    if not seen:
        raise ValueError("No validation batch was captured; pruning needs at least one.")
    own = found[0].to(device)
    if not is_distributed():
        return own
    outputs = {}
    for layer, (shape, dtype) in seen[0].outputs.items():
        shapes = [one.outputs[layer][0] for one in seen]
        for other in shapes:
            check_positions(layer, shape[2], other[2])
        classes = max(other[0] for other in shapes)
        outputs[layer] = _sums(own.outputs.get(layer), classes, shape, dtype, device)
    _add_sums(list(outputs.values()))
    inputs = {
        layer: _added_moments(
            own.inputs.get(layer),
            width,
            [one.inputs[layer][1] if one.samples else 0 for one in outlines],
            device,
        )
        for layer, (width, _) in seen[0].inputs.items()
    }
    return Activations(outputs, inputs, sum(one.samples for one in seen))


def _sums(
    own: ClassSums | None, classes: int, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> ClassSums:
    """Sums of this rank over as many classes as any rank has, zero if it has none."""
    if own is None:
        own = ClassSums.about(torch.zeros(1, *shape[1:], dtype=dtype, device=device), classes)
    return own.widened(classes)


def _add_sums(sums: Sequence[ClassSums]) -> None:
    """Let every rank have the sums of all ranks, in place."""
    counts, wholes = _added([one.count for one in sums]), _added([one.whole() for one in sums])
    for one, count, whole in zip(sums, counts, wholes, strict=True):
        # About the mean of all samples, the same on every rank: there no variance loses digits.
        one.move_(whole / int(count.sum()))
        one.count.copy_(count)
        dist.all_reduce(one.total)
        dist.all_reduce(one.squares)


def _added_moments(
    own: InputMoments | None, width: int, counts: Sequence[int], device: torch.device
) -> InputMoments:
    """Second moments of all ranks; the vectors themselves, in the order of ranks, while they are few."""
    total = sum(counts)
    if total <= FEW * width:
        start = sum(counts[: dist.get_rank()])
        held = torch.zeros(width, total, dtype=torch.float64, device=device)
        if own is not None:
            held[:, start : start + own.count] = own.held
    elif own is not None:
        held = own.total
    else:
        held = torch.zeros(width, width, dtype=torch.float64, device=device)
    dist.all_reduce(held)
    return InputMoments(total, held)


def _added(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over the ranks of small tensors, in one go."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
