"""Which channels are one: marks on positions, ties between marks, and the classes that they make.

Every position that a layer makes gets a mark of its own, a positive number. What forward does with them
ties marks together, as in a sum, or pins them, as where the network's output shows them. Marks that are
tied go together or not at all.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from acsp_lightning.structure.marks import thin


class Channels:
    """The marks of a network, tied and pinned while its forward is followed."""

    def __init__(self) -> None:
        self._count = 1  # 0 marks what is no channel
        self._ties: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._pins: list[tuple[Tensor, str]] = []

    def new(self, count: int) -> Tensor:
        """Fresh marks, int64, (count,)."""
        self._count += count
        return torch.arange(self._count - count, self._count)

    def tie(self, left: Tensor, right: Tensor) -> bool:
        """Tie marks pairwise; returns whether any two of them were different.

        Args:
            left: marks of any shape; zeros are passed over.
            right: marks of the same shape.
        """
        left, right = thin(left, right)
        differ = (left != right) & (left > 0) & (right > 0)
        pairs = torch.stack([left[differ], right[differ]])
        self._ties.append(pairs)
        return bool(pairs.shape[1])

    def tie_along(self, marks: Tensor, dim: int) -> None:
        """Tie all marks along a dimension to one another, past what is no channel."""
        (marks,) = thin(marks)
        first = marks.gather(dim, (marks > 0).int().argmax(dim, keepdim=True))
        self.tie(first.expand_as(marks), marks)

    def add(self, marks: Tensor) -> None:
        """Note that marks run through a sum of several tensors of the network."""
        self._sums.append(torch.unique(*thin(marks)))

    def pin(self, marks: Tensor, reason: str) -> None:
        """Note why marks must stay; the first reason counts."""
        (found,) = thin(marks)
        found = torch.unique(found[found > 0])
        if len(found):
            self._pins.append((found, reason))

    def classes(self) -> "Classes":
        """What the ties make of the marks."""
        return Classes(self._roots(), self._pins, self._sums)

    def _roots(self) -> Tensor:
        """The smallest mark of every mark's class: smaller ones spread along the ties."""
        roots = torch.arange(self._count)
        ties = torch.cat(self._ties, 1) if self._ties else torch.empty(2, 0, dtype=torch.int64)
        while True:
            smallest = roots[ties].amin(0)
            lower = roots.clone()
            for ends in ties:
                lower.scatter_reduce_(0, roots[ends], smallest, "amin")
            lower = lower[lower]
            if torch.equal(lower, roots):
                return roots
            roots = lower


class Classes:
    """Marks that go together.

    Args:
        roots: the smallest mark of every mark's class, (marks,).
        pins: marks that must stay, and why.
        sums: marks that run through a sum.
    """

    def __init__(
        self, roots: Tensor, pins: Iterable[tuple[Tensor, str]], sums: Iterable[Tensor]
    ) -> None:
        self._roots = roots
        self._reasons: dict[int, str] = {}
        for marks, reason in pins:
            for root in torch.unique(roots[marks]).tolist():
                self._reasons.setdefault(root, reason)
        self._summed = {root for marks in sums for root in torch.unique(roots[marks]).tolist()}

    def of(self, marks: Tensor) -> Tensor:
        """The class of every mark, by its smallest mark."""
        return self._roots[marks]

    def reason(self, root: int) -> str | None:
        """Why a class must stay; None if it may go."""
        return self._reasons.get(root)

    def reason_numbers(self) -> Tensor:
        """By root: a number for every reason why a class must stay, 0 for those that may go."""
        numbers = {reason: n for n, reason in enumerate(dict.fromkeys(self._reasons.values()), 1)}
        found = torch.zeros_like(self._roots)
        for reason, number in numbers.items():
            found[[root for root, why in self._reasons.items() if why == reason]] = number
        return found

    def is_summed(self, root: int) -> bool:
        """Whether a class runs through a sum."""
        return root in self._summed
