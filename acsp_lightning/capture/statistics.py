"""Statistics of a capture: sums by class over outputs, and second moments of inputs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from acsp_lightning.functional import ClassMoments, ClassSums, WidthDecision
from acsp_lightning.functional.precision import device_of_float64
from acsp_lightning.structure.groups import ChannelGroup


@dataclass(frozen=True, slots=True)
class InputMoments:
    """Uncentred second moments of D input channels.

    Attributes:
        count: number of vectors, over samples and positions.
        total: sum of x x^T, float64 (D, D).
    """

    count: int
    total: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of x x^T, float64 (D, D)."""
        return self.total / self.count

    def with_rows(self, rows: Tensor) -> "InputMoments":
        """Add the vectors in the columns of ``rows``, (D, S); updates ``total`` in place."""
        return InputMoments(self.count + rows.shape[1], self.total.addmm_(rows, rows.T))

    def merged(self, other: "InputMoments") -> "InputMoments":
        """The moments of both sets of vectors."""
        return InputMoments(self.count + other.count, self.total + other.total)


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
            {layer: InputMoments(m.count, m.total.to(home)) for layer, m in self.inputs.items()},
            self.samples,
        )

    def moments(self, layer: str) -> ClassMoments:
        """Class moments of a layer's own output."""
        return self.outputs[layer].moments()

    @property
    def input_moments(self) -> dict[str, Tensor]:
        """Mean of x x^T of every layer's input, float64 (D, D), by layer name."""
        return {layer: moments.mean for layer, moments in self.inputs.items()}


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
    """

    epoch: int | None
    groups: tuple[ChannelGroup, ...]
    activations: Activations
    metric: float | None = None
    decisions: Mapping[str, WidthDecision] | None = None
    left_whole: Mapping[str, str] = field(default_factory=dict)


def merge_activations(parts: Iterable[Activations]) -> Activations:
    """Merge the statistics of captures of the same layers on disjoint samples.

    Parts without samples (a process whose share of the data was empty) are skipped.

    Raises:
        ValueError: if no part has samples, or the maps of a layer are of several sizes.
    """
    seen = [part for part in parts if part.samples]
    if not seen:
        raise ValueError("No validation batch was captured; pruning needs at least one.")
    merged, *others = seen
    for part in others:
        merged = Activations(
            {layer: _merged(layer, sums, part.outputs[layer]) for layer, sums in merged.outputs.items()},
            {layer: m.merged(part.inputs[layer]) for layer, m in merged.inputs.items()},
            merged.samples + part.samples,
        )
    return merged


def _merged(layer: str, known: ClassSums, more: ClassSums) -> ClassSums:
    check_positions(layer, known, more.origin.shape[1])
    return known.merged(more)


def check_positions(layer: str, known: ClassSums, found: int) -> None:
    """Raise ``ValueError`` if earlier maps of a layer had another number of positions."""
    if known.origin.shape[1] != found:
        raise ValueError(
            f"Layer {layer!r} gave maps of {known.origin.shape[1]} and of {found} "
            "positions. Separation compares position with position: validate on inputs of one "
            "size, or set a smaller selection.grid."
        )
