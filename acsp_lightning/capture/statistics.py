"""Statistics of a capture: sums by class over outputs, and second moments of inputs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from acsp_lightning.functional import ClassMoments, ClassSums, WidthDecision
from acsp_lightning.functional.precision import device_of_float64
from acsp_lightning.structure.groups import ChannelGroup

# As long as there are at most this many vectors for each channel, they are held themselves: that takes
# less memory than their products, and whoever computes with them needs no system as wide as the layer.
FEW = 0.25


@dataclass(frozen=True, slots=True)
class InputMoments:
    """Uncentred second moments of D input channels.

    Attributes:
        count: number of vectors, over samples and positions.
        held: float64; the vectors themselves, (D, count), while they are at most :data:`FEW` * D; from
            then on the sum of x x^T, (D, D).
    """

    count: int
    held: Tensor

    @property
    def vectors(self) -> Tensor | None:
        """The vectors, (D, count), while they are few; else None."""
        return None if self.held.shape[1] == len(self.held) else self.held

    @property
    def total(self) -> Tensor:
        """Sum of x x^T, float64 (D, D)."""
        return self.held if self.vectors is None else self.held @ self.held.T

    @property
    def mean(self) -> Tensor:
        """Mean of x x^T, float64 (D, D)."""
        if self.vectors is None:
            return self.held / self.count
        return (self.held / self.count) @ self.held.T

    @property
    def power(self) -> Tensor:
        """Mean square of every channel, float64 (D,)."""
        if self.vectors is None:
            return self.held.diagonal() / self.count
        return self.held.square().sum(1) / self.count

    def with_rows(self, rows: Tensor) -> "InputMoments":
        """Add the vectors in the columns of ``rows``, (D, S); updates the sum in place."""
        count = self.count + rows.shape[1]
        if self.vectors is None:
            return InputMoments(count, self.held.addmm_(rows, rows.T))
        held = torch.cat([self.held, rows], 1)
        return InputMoments(count, held if count <= FEW * len(rows) else held @ held.T)


@dataclass(frozen=True, slots=True)
class _Means(Mapping[str, Tensor]):
    """Second moments by layer, each computed when it is asked for: of wide layers they are large."""

    inputs: Mapping[str, InputMoments]

    def __getitem__(self, layer: str) -> Tensor:
        return self.inputs[layer].mean

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class Activations:
    """The statistics of one capture.

    Attributes:
        outputs: sums by class over the output of every producer, by layer name.
        inputs: second moments of the input of every consumer, by layer name.
        samples: number of samples seen.
    """

    outputs: Mapping[str, ClassSums]
    inputs: Mapping[str, InputMoments]
    samples: int

    def to(self, device: torch.device) -> "Activations":
        """The same statistics on another device; what is in float64 on the CPU, if it has none."""
        home = device_of_float64(device)
        return Activations(
            {layer: sums.to(device) for layer, sums in self.outputs.items()},
            {layer: InputMoments(m.count, m.held.to(home)) for layer, m in self.inputs.items()},
            self.samples,
        )

    def moments(self, layer: str) -> ClassMoments:
        """Class moments of a layer's own output."""
        return self.outputs[layer].moments()

    @property
    def input_moments(self) -> Mapping[str, Tensor]:
        """Mean of x x^T of every layer's input, float64 (D, D), by name; computed when asked for."""
        return _Means(self.inputs)


@dataclass(frozen=True, slots=True)
class Captured:
    """What a validation captured for the next cut.

    Attributes:
        epoch: zero-based epoch of the validation; None outside of a fit.
        groups: groups of channels that may be cut.
        activations: their captured activations.
        metric: value of the accuracy guard's metric in this validation; None without a guard.
        decisions: number of channels to keep in every group, by name; None: not decided yet.
        left_whole: why groups that were asked for cannot be cut, and layers that residual=True
            would add are not, by name.
        held_back: share of the validation samples that was not captured, to measure cuts on.
        sums: what was decided about residual sums, as a sentence; None if there is nothing to decide.
    """

    epoch: int | None
    groups: tuple[ChannelGroup, ...]
    activations: Activations
    metric: float | None = None
    decisions: Mapping[str, WidthDecision] | None = None
    left_whole: Mapping[str, str] = field(default_factory=dict)
    held_back: float = 0.0
    sums: str | None = None


def check_positions(layer: str, known: int, found: int) -> None:
    """Raise ``ValueError`` if maps of a layer have several numbers of positions."""
    if known != found:
        raise ValueError(
            f"Layer {layer!r} gave maps of {known} and of {found} "
            "positions. Separation compares position with position: validate on inputs of one "
            "size, or set a smaller selection.grid."
        )
