"""Cuts that are tried on a copy: made, recovered, and compared with the uncut network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from acsp_lightning.functional import ChannelSelection
from acsp_lightning.measure.accuracy import OutputReader, is_at_chance
from acsp_lightning.measure.complexity import Complexity
from acsp_lightning.measure.fidelity import Fidelity, collect_scores, compare_scores
from acsp_lightning.measure.latency import compare_latency
from acsp_lightning.selection.cost import FlopsModel
from acsp_lightning.selection.tradeoff import Depth
from acsp_lightning.structure.copying import eager_copy
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.pruning import Recovery, prune
from acsp_lightning.structure.surgery import parameters_to_slice
from acsp_lightning.structure.thinning import thinned

# Samples of the refit in a trial, or up to twice as many: a depth is to be cheap. 100 were too few on a
# ResNet-56.
FEW_SAMPLES = 256


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Samples held back from the capture.

    Attributes:
        inputs: arguments of forward, by batch.
        labels: class indices of all samples, (S,).
    """

    inputs: Sequence[tuple[Any, ...]]
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Timing:
    """How cuts are timed.

    Attributes:
        inputs: arguments of forward.
        batch_sizes: batch sizes to time at; empty: they are not timed.
    """

    inputs: tuple[Any, ...]
    batch_sizes: Sequence[int]


class Trials:
    """Makes cuts of a network on copies, and measures them; the network stays as it is.

    Args:
        model: the uncut network.
        groups: its groups of channels.
        before: its complexity.
        recovery: what the consumers recover with, as in the cut itself.
        held_back: the samples to measure on.
        read_outputs: finds class scores in the outputs of forward.
        timing: how cuts are timed.

    Raises:
        ValueError: if forward returns no class scores.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        before: Complexity,
        recovery: Recovery,
        held_back: HeldBack,
        read_outputs: OutputReader | None,
        timing: Timing,
    ) -> None:
        self._model = model
        self._groups = tuple(groups)
        self._before = before
        self._costs = FlopsModel(groups, before.by_layer)
        self._recovery = recovery
        self._refit = recovery.refit
        if recovery.refit is not None and recovery.refit.samples >= 2 * FEW_SAMPLES:
            self._refit = thinned(recovery.refit, recovery.refit.samples // FEW_SAMPLES)
        self._held_back = held_back
        self._read_outputs = read_outputs
        self._timing = timing
        self._uncut = self._scores(model)

    @property
    def uncut(self) -> Depth:
        """The network as it is."""
        return Depth(
            self._before.flops,
            self._before.parameters,
            {group.name: group.width for group in self._groups},
            self._compared(self._uncut),
            {str(size): 1.0 for size in self._timing.batch_sizes},
        )

    @property
    def is_at_chance(self) -> bool:
        """Whether the uncut network guesses, so that it has no accuracy to lose."""
        labels = self._held_back.labels
        accuracy = float((self._uncut.argmax(1).to(labels) == labels).double().mean())
        return is_at_chance(accuracy, len(labels), len(set(labels.tolist())))

    def measure(self, selections: Mapping[str, ChannelSelection]) -> Depth:
        """Make a cut on a copy, and measure it.

        Args:
            selections: the channels of every group to keep, by name.
        """
        plan = build_plan(self._groups, {name: s.kept.tolist() for name, s in selections.items()})
        smaller = eager_copy(self._model, parameters_to_slice(self._model, plan))
        prune(
            smaller,
            plan,
            None,
            groups=self._groups,
            input_moments=self._recovery.input_moments,
            refit=self._refit,
        )
        widths = {name: selection.k for name, selection in selections.items()}
        saved = self._costs.total({}) - self._costs.total(widths)
        return Depth(
            self._before.flops - round(saved),
            self._before.parameters - _numel(self._model) + _numel(smaller),
            widths,
            self._compared(self._scores(smaller)),
            self._speedups(smaller),
        )

    def _speedups(self, smaller: nn.Module) -> dict[str, float]:
        sizes = self._timing.batch_sizes
        if not sizes:
            return {}
        found = compare_latency(self._model, smaller, self._timing.inputs, sizes)
        return {str(size): one.speedup for size, one in zip(sizes, found, strict=True)}

    def _scores(self, model: nn.Module) -> Tensor:
        scores = collect_scores(
            model, self._held_back.inputs, self._held_back.labels, self._read_outputs
        )
        if scores is None:
            raise ValueError(
                "forward returns no class scores for the samples held back, so that no accuracy can be "
                "measured; pass read_outputs=, or set selection.curve='damage' or selection.flops."
            )
        return scores

    def _compared(self, scores: Tensor) -> Fidelity:
        return compare_scores(self._uncut, scores, self._held_back.labels)


def _numel(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
