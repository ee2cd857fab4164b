"""What layers of the uncut network gave on samples, batch by batch: what they are refitted to."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.functional.pooled import PooledMoments
from acsp_lightning.functional.precision import wide
from acsp_lightning.structure.branches import Branch
from acsp_lightning.structure.store import Kept, Store
from acsp_lightning.structure.unfold import (
    gives_rows,
    output_rows,
    random_rows,
    shape_of_rows,
    without_channels,
)


@dataclass(frozen=True, slots=True)
class TargetPart:
    """What a layer of the uncut network gave for one batch.

    Attributes:
        shape: of its output.
        rows: at which samples and positions, int64, (S,).
        kept: what it gave there, and perhaps elsewhere.
        taken: which rows of that, bool; None: all.
    """

    shape: torch.Size
    rows: Tensor
    kept: "Kept | _Joined"
    taken: Tensor | None = None

    @property
    def outputs(self) -> Tensor:
        """What the layer gave, (S, O), together with what was added to it, in its own units."""
        found = self.kept.tensor
        return found if self.taken is None else found[self.taken]

    @property
    def positions(self) -> int:
        """Of each sample."""
        return self.shape.numel() // (self.shape[0] * self.kept.shape[1])

    def thinned(self, first: int, step: int) -> "TargetPart":
        """The same for every ``step``-th sample, from ``first`` on."""
        sample, position = self.rows // self.positions, self.rows % self.positions
        mine = sample % step == first
        taken = mine
        if self.taken is not None:
            taken = self.taken.clone()
            taken[self.taken] = mine
        return TargetPart(
            torch.Size((len(range(first, self.shape[0], step)), *self.shape[1:])),
            ((sample - first) // step * self.positions + position)[mine],
            self.kept,
            taken,
        )


@dataclass(frozen=True, slots=True)
class _Joined:
    """What several parts have kept, read when it is needed."""

    parts: Sequence[TargetPart]

    @property
    def tensor(self) -> Tensor:
        """Outputs of all parts, (S, O)."""
        return torch.cat([part.outputs for part in self.parts])

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return torch.Size((sum(len(part.rows) for part in self.parts), self.parts[0].kept.shape[1]))


def join_parts(parts: Sequence[TargetPart]) -> TargetPart:
    """Parts for several batches as one for the samples of all, which are given maps of one size."""
    samples = [part.shape[0] for part in parts]
    starts = accumulate(samples[:-1], initial=0)
    rows = [part.rows + start * part.positions for part, start in zip(parts, starts, strict=True)]
    return TargetPart(torch.Size((sum(samples), *parts[0].shape[1:])), torch.cat(rows), _Joined(parts))


@dataclass(frozen=True, slots=True)
class Target:
    """What a layer of the uncut network gave.

    Attributes:
        parts: by batch.
        power: variance of the output together with what is added to it, summed over channels, scaled.
        summed: whether something was added to it.
        scale: what the BatchNorm that reads it, if one does, multiplies it by, (O,).
    """

    parts: Sequence[TargetPart]
    power: float
    summed: bool = False
    scale: Tensor | None = None

    @property
    def samples(self) -> int:
        """Number of samples, or of rows where the layer is not given one for each."""
        return sum(part.shape[0] for part in self.parts)

    @property
    def num_rows(self) -> int:
        """Number of samples and positions."""
        return sum(len(part.rows) for part in self.parts)


@dataclass
class _Noted:
    """What is known of a layer so far.

    Attributes:
        generator: draws positions, over all batches.
        open: of this batch: shape, rows and outputs.
        added: whether something was added to that.
        parts: of the batches before.
        summed: whether something was added to each of them.
        moments: of their outputs.
        scale: of the BatchNorm that reads the layer.
        calls: of this batch.
        repeated: whether a batch called the layer more than once.
    """

    generator: torch.Generator
    open: tuple[torch.Size, Tensor, Tensor] | None = None
    added: bool = False
    parts: list[TargetPart] = field(default_factory=list)
    summed: set[bool] = field(default_factory=set)
    moments: PooledMoments = field(default_factory=PooledMoments)
    scale: Tensor | None = None
    calls: int = 0
    repeated: bool = False

    def target(self) -> Target:
        spread = self.moments.spread if self.scale is None else self.moments.spread * self.scale
        power = float(wide(spread).square().sum())
        return Target(tuple(self.parts), power, True in self.summed, self.scale)


class Targets:
    """Gathers the targets of an uncut network, batch by batch.

    Args:
        positions: of each sample, at most.
        seed: of the choice of positions.
        beside: layers that are not to make up for the error of a sum.
    """

    def __init__(self, positions: int, seed: int, beside: Collection[str] = ()) -> None:
        self._positions = positions
        self._seed = seed
        self._beside = beside
        self._store = Store()
        self._noted: dict[str, _Noted] = {}
        self._batches = 0

    def see(self, branch: Branch, given: Any, output: Tensor) -> None:
        """What a layer gave, or what a norm made of it."""
        if branch.norm is not None:
            if branch.layer in self._noted:
                self._noted[branch.layer].scale = branch.scale
            return
        if branch.layer not in self._noted:
            seed = self._seed + len(self._noted)
            self._noted[branch.layer] = _Noted(torch.Generator().manual_seed(seed))
        noted = self._noted[branch.layer]
        noted.calls += 1
        noted.open, noted.added = None, False
        if not _are_rows(branch.module, given, output):
            return
        rows = random_rows(branch.module, output, self._positions, noted.generator)
        if gives_rows(branch.module, given, output, rows[: self._positions]):
            noted.open = (output.shape, rows, output_rows(branch.module, output, rows))

    def add(self, branch: Branch, own: Tensor, other: Tensor) -> bool:
        """What is added to the output of a layer; returns whether it makes up for its error."""
        if branch.layer in self._beside:
            return False
        noted = self._noted.get(branch.layer)
        if noted is None or noted.open is None or noted.added or own.shape != noted.open[0]:
            return True
        shape, rows, outputs = noted.open
        beside = branch.in_own_units(output_rows(branch.module, other, rows))
        # In half precision the sum would lose what the fit is about.
        total = beside.to(torch.promote_types(beside.dtype, torch.float32)) + outputs
        noted.open, noted.added = (shape, rows, total), True
        return True

    def close(self) -> None:
        """The end of a batch."""
        self._batches += 1
        for noted in self._noted.values():
            noted.repeated |= noted.calls > 1
            noted.calls = 0
            if noted.open is not None:
                shape, rows, outputs = noted.open
                noted.moments.add(outputs, 1)
                noted.parts.append(TargetPart(shape, rows, self._store.keep(outputs)))
                noted.summed.add(noted.added)
                noted.open = None

    @property
    def by_layer(self) -> dict[str, Target]:
        """Those of layers that gave one product in every batch, and did the same with it."""
        return {
            layer: noted.target()
            for layer, noted in self._noted.items()
            if len(noted.parts) == self._batches and len(noted.summed) == 1 and not noted.repeated
        }


def _are_rows(module: nn.Module, given: Any, output: Tensor) -> bool:
    """Whether an output has the shape of a product of what the layer was given and its weight."""
    rows, filters = shape_of_rows(module, given), len(module.get_parameter("weight"))
    return (
        rows is not None
        and output.ndim == len(rows) + 1
        and without_channels(module, output.shape) == rows
        and output.numel() == filters * rows.numel()
    )
