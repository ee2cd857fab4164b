"""Tensors of marks: which channel every element of a tensor carries.

They have the shape of the tensor, and stride 0 along every dimension along which they stay the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def varying(marks: Tensor) -> list[int]:
    """The dimensions along which marks differ."""
    return [d for d in range(marks.ndim) if marks.shape[d] > 1 and marks.stride(d) != 0]


def pressed(marks: Tensor) -> Tensor:
    """The same marks, with stride 0 wherever they stay the same."""
    shape = marks.shape
    for dim in varying(marks):
        first = marks.narrow(dim, 0, 1)
        if torch.equal(first.expand_as(marks), marks):
            marks = first
    return marks.expand(shape)


def thin(*marks: Tensor) -> tuple[Tensor, ...]:
    """Mark tensors of one shape, each dimension along which none of them differs cut to one place."""
    same = [d for d in range(marks[0].ndim) if all(d not in varying(other) for other in marks)]
    thinned = []
    for other in marks:
        for dim in same:
            other = other.narrow(dim, 0, min(1, other.shape[dim]))
        thinned.append(other)
    return tuple(thinned)


def along(marks: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """A vector of marks as a tensor of ``shape`` that differs along ``dim`` alone."""
    view = [1] * len(shape)
    view[dim] = -1
    return marks.view(view).expand(tuple(shape))


def none_of(shape: Sequence[int]) -> Tensor:
    """A tensor of marks without any channel."""
    return torch.zeros((), dtype=torch.int64).expand(tuple(shape))


def resized(marks: Tensor, shape: Sequence[int]) -> Tensor:
    """Marks of a tensor of which dimensions got new sizes, those along which marks differ left out."""
    for dim, size in enumerate(shape):
        if marks.shape[dim] != size:
            marks = marks.narrow(dim, 0, 1)
    return marks.expand(tuple(shape))


def split_dims(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which dimensions of a view were made of which: the smallest runs of equal products, in order."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = [i], [j]
        a, b = before[i], after[j]
        while a != b:
            if a < b:
                i += 1
                left.append(i)
                a *= before[i]
            else:
                j += 1
                right.append(j)
                b *= after[j]
        runs.append((left, right))
        i, j = i + 1, j + 1
    return runs
