"""Recovery without training, layer by layer: layers learn to give again what they gave before.

Folding what removed channels said into the layers that read them corrects every layer by itself; what
is left of the error grows from layer to layer. Here each layer from the first that lost inputs on is
fitted, in the order of the forward pass, to the outputs of the uncut network, on the inputs that it
really gets in the cut network: whether it lost some of them, or they only are no longer what they were.
Where its output is added to something else (a residual sum), it also makes up for the error of that;
of two layers that are added to each other, one does.

The samples come in batches, whose passes through the network wait for each other before every layer
(:mod:`acsp_lightning.structure.lockstep`). A hook adds up there what the fit needs, at the moment the
inputs are complete: nothing needs to be known of what lies between.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor, nn

from acsp_lightning.functional.least_squares import LeastSquares
from acsp_lightning.functional.precision import in_blocks
from acsp_lightning.progress import step
from acsp_lightning.structure.branches import Branch, Sums, watched_branches
from acsp_lightning.structure.forward import run_forward
from acsp_lightning.structure.groups import Norm
from acsp_lightning.structure.inputs import sample_count
from acsp_lightning.structure.lockstep import Lockstep
from acsp_lightning.structure.memory import return_unused
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.rescaling import NormTarget, noted, rescaled
from acsp_lightning.structure.targets import Target, Targets
from acsp_lightning.structure.unfold import (
    input_rows,
    output_rows,
    shape_of_rows,
    without_channels,
)

# Positions of each sample at which a convolution is compared: on a ResNet-56 as good as 64.
POSITIONS = 32

# Rows for each input that a layer takes to be fitted although it lost none. With few rows it would learn
# them by heart, where its own weights are nearly right.
ROWS = 4


@dataclass(frozen=True, slots=True)
class Refit:
    """What layers are fitted to.

    Attributes:
        inputs: arguments of ``forward``, by batch.
        targets: what they gave in the uncut network, by layer, in the order of the forward pass.
        norms: what layers gave that use statistics of their channels, by layer.
        later: layers among them that are fitted also if they lose nothing, once one before has.
    """

    inputs: Sequence[tuple[Any, ...]]
    targets: Mapping[str, Target]
    norms: Mapping[str, NormTarget] = field(default_factory=dict)
    later: Sequence[str] = ()

    @property
    def samples(self) -> int:
        """Number of samples, or of rows where a layer is not given one for each; 0 without targets."""
        return min((target.samples for target in self.targets.values()), default=0)

    def layers(self, plan: PruningPlan) -> list[str]:
        """The layers to fit after a cut, in the order of the forward pass."""
        cut = {side.layer for side in plan if side.side == "in"}
        # Where one of them has no target, nobody knows which of the others run before it.
        known = cut <= self.targets.keys()
        changed = dropwhile(lambda layer: known and layer not in cut, self.targets)
        return [layer for layer in changed if layer in cut or layer in self.later]


def prepare_refit(
    model: nn.Module,
    layers: Iterable[str],
    inputs: Sequence[tuple[Any, ...]],
    seed: int = 0,
    norms: Iterable[Norm] = (),
    later: Collection[str] = (),
) -> Refit:
    """Note what layers of an uncut network give.

    Args:
        model: the uncut network; run once on every batch, in eval mode.
        layers: the consumers; passed over are those that are no product of patches and a weight
            (transposed convolutions, layers with a forward of their own), and those that one pass
            calls several times.
        inputs: arguments of ``forward``, by batch.
        seed: of the choice of positions.
        norms: layers that use statistics of channels.
        later: layers that may be fitted although they lose nothing; those that are no consumers make up
            for no sums. Passed over are those that the samples do not determine well, too.

    Returns:
        The samples with a target for every layer.
    """
    return_unused()  # what tracing has left
    consumers = dict.fromkeys(layers)
    beside = set(later) - consumers.keys()
    targets = Targets(POSITIONS, seed, beside)
    with (
        watched_branches(model, [*consumers, *beside], Sums(targets.add), after=targets.see),
        noted(model, norms) as found,
    ):
        for batch in inputs:
            run_forward(model, batch)
            targets.close()
    known, sizes = targets.by_layer, [sample_count(batch) for batch in inputs]
    usable = [x for x in known if x in later and _is_determined(model, x, known[x], sizes)]
    kept = {layer: target for layer, target in known.items() if layer in consumers or layer in usable}
    return Refit(inputs, kept, found, usable)


def _is_determined(model: nn.Module, layer: str, target: Target, sizes: Sequence[int]) -> bool:
    """Whether a layer has one row or map for each sample, and enough of them."""
    inputs = model.get_submodule(layer).get_parameter("weight")[0].numel()
    by_sample = all(part.shape[0] == size for part, size in zip(target.parts, sizes, strict=True))
    return by_sample and target.num_rows >= ROWS * inputs


def refit_layers(model: nn.Module, plan: PruningPlan, refit: Refit) -> None:
    """Fit the layers whose inputs a plan has cut, and those after them, to what they gave before.

    Norms over the channels that stay are rescaled on the way.

    Args:
        model: the cut network.
        plan: the cut.
        refit: what :func:`prepare_refit` found before the cut.
    """
    layers = refit.layers(plan)
    with step("Refitting layers", len(layers)) as advance:
        fitting = _Fitting(model, plan, refit, advance)
        with (
            watched_branches(model, layers, fitting.sums, before=fitting.before),
            rescaled(model, plan, refit.norms, fitting.passes.meet) as norms,
        ):
            fitting.passes.run({*layers, *norms})


class _Fitting:
    """Fits layers while the passes of the batches come by."""

    def __init__(
        self, model: nn.Module, plan: PruningPlan, refit: Refit, advance: Callable[[], None]
    ) -> None:
        self._model = model
        self._plan = plan
        self._refit = refit
        self._advance = advance
        self._fits: dict[str, LeastSquares] = {}
        # Layers whose rows are others than before the cut, as where values decide which there are.
        self._astray: set[str] = set()
        # What layers were given whose sum is still to come, and the rows of it, by batch.
        self._waiting: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        self.sums = Sums(self.add)
        passes = [partial(self._pass, place) for place in range(len(refit.inputs))]
        self.passes = Lockstep(model, passes, lambda: self.sums.held)

    def _pass(self, place: int) -> None:
        self._waiting[place] = {}
        try:
            run_forward(self._model, self._refit.inputs[place])
        finally:
            del self._waiting[place]

    def before(self, layer: str, module: nn.Module, given: Any) -> None:
        """A layer is about to run."""
        if self.passes.is_settled(layer):
            return
        target = self._refit.targets[layer]
        part = target.parts[self.passes.current]
        if shape_of_rows(module, given) != without_channels(module, part.shape):
            self._astray.add(layer)
            self.passes.meet(layer, lambda: None, partial(self._settle, layer, module))
            return
        rows = partial(input_rows, module, given, part.shape, part.rows)
        if target.summed:
            self._waiting[self.passes.current][layer] = (given, rows())
        else:
            settle = partial(self._settle, layer, module)
            self.passes.meet(layer, lambda: self._tell(layer, module, rows(), 0.0), settle)

    def add(self, branch: Branch, own: Tensor, other: Tensor) -> bool:
        """Something is about to be added to the output of a layer; returns whether it is compensated."""
        layer, module, waiting = branch.layer, branch.module, self._waiting[self.passes.current]
        if layer not in waiting:
            return False
        given = waiting[layer][0]

        def tell() -> None:
            # Nobody holds the rows while the pass waits.
            _, rows = waiting.pop(layer)
            target = self._refit.targets[layer]
            beside = output_rows(module, other, target.parts[self.passes.current].rows)
            self._tell(layer, module, rows, branch.in_own_units(beside, target.scale))

        # While torch hands a function to a mode, the mode is not in force.
        if not self.passes.meet(layer, tell, partial(self._settle, layer, module), self.sums):
            return True
        # Some samples at a time: the sum is where most maps are alive. Past the hooks, which are for the
        # network's own calls.
        parts = in_blocks(given)
        for part, place in zip(parts, torch.split(own, len(parts[0])), strict=True):
            refitted = module.forward(part)
            place.copy_(refitted if branch.norm is None else branch.norm.forward(refitted))
        return True

    def _tell(self, layer: str, module: nn.Module, rows: Tensor, added: Tensor | float) -> None:
        target = self._refit.targets[layer]
        wanted = target.parts[self.passes.current].outputs
        kept = self._plan.kept(layer, "out")
        if kept is not None:
            wanted = wanted[:, torch.tensor(kept)]
        if layer not in self._fits:
            weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
            self._fits[layer] = LeastSquares(target.num_rows, weight.flatten(1), bias)
        self._fits[layer].add(rows, wanted - added)

    def _settle(self, layer: str, module: nn.Module) -> None:
        if self._fit(layer, module):
            # What it took is large, and was not needed by the layer before.
            return_unused()
            self._advance()

    def _fit(self, layer: str, module: nn.Module) -> bool:
        weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
        fit = self._fits.pop(layer, None)
        if fit is None or layer in self._astray:
            return False
        new, shift = fit.solve()
        weight.copy_(new.view_as(weight))
        if bias is not None and shift is not None:
            bias.copy_(shift)
        return True
