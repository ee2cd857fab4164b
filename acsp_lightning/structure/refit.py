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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, dropwhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from acsp_lightning.functional.least_squares import LeastSquares
from acsp_lightning.functional.precision import in_blocks
from acsp_lightning.progress import step
from acsp_lightning.structure.branches import Branch, Sums, watched_branches
from acsp_lightning.structure.fitted import correctable_layers
from acsp_lightning.structure.forward import run_forward
from acsp_lightning.structure.groups import Norm
from acsp_lightning.structure.lockstep import Lockstep
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.rescaling import NormTarget, noted, rescaled
from acsp_lightning.structure.targets import Target, Targets
from acsp_lightning.structure.unfold import input_rows, output_rows

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
    """

    inputs: Sequence[tuple[Any, ...]]
    targets: Mapping[str, Target]
    norms: Mapping[str, NormTarget] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples, or of rows where a layer is not given one for each; 0 without targets."""
        return min((target.samples for target in self.targets.values()), default=0)

    def halved(self) -> "Refit":
        """The same with every other sample, for a fit in half the time; of norms and power, of all.

        All of them, where a layer is not given one map or row of features for each sample.
        """
        counts = []
        for place, batch in enumerate(self.inputs):
            tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
            rows = {target.parts[place].shape[0] for target in self.targets.values()}
            if {leaf.shape[:1] for leaf in tensors} != {torch.Size([count]) for count in rows}:
                return self
            counts.append(len(tensors[0]))
        # Of a batch after an odd number of samples the second is the first that stays.
        firsts = [before % 2 for before in accumulate(counts, initial=0)][: len(counts)]
        left = [place for place, count in enumerate(counts) if count > firsts[place]]
        return Refit(
            _EveryOther(self.inputs, left, [firsts[place] for place in left]),
            {
                layer: replace(target, parts=tuple(target.parts[p].every_other(firsts[p]) for p in left))
                for layer, target in self.targets.items()
            },
            self.norms,
        )


def prepare_refit(
    model: nn.Module,
    layers: Iterable[str],
    inputs: Sequence[tuple[Any, ...]],
    seed: int = 0,
    norms: Iterable[Norm] = (),
) -> Refit:
    """Note what the consumers of an uncut network give.

    Args:
        model: the uncut network; run once on every batch, in eval mode.
        layers: the consumers, and others that may be fitted; passed over are those that are no product
            of patches and a weight (transposed convolutions, layers with a forward of their own), and
            those that one pass calls several times.
        inputs: arguments of ``forward``, by batch.
        seed: of the choice of positions.
        norms: layers that use statistics of channels.

    Returns:
        The samples with a target for every layer.
    """
    targets = Targets(POSITIONS, seed)
    with (
        watched_branches(model, layers, Sums(targets.add), after=targets.see),
        noted(model, norms) as found,
    ):
        for batch in inputs:
            run_forward(model, batch)
            targets.close()
    return Refit(inputs, targets.by_layer, found)


def refit_consumers(model: nn.Module, plan: PruningPlan, refit: Refit) -> None:
    """Fit the layers whose inputs a plan has cut, and those after them, to what they gave before.

    Norms over the channels that stay are rescaled on the way.

    Args:
        model: the cut network.
        plan: the cut.
        refit: what :func:`prepare_refit` found before the cut.
    """
    layers = _layers_to_fit(model, plan, refit.targets)
    with step("Refitting layers", len(layers)) as advance:
        fitting = _Fitting(model, plan, refit, advance)
        with (
            watched_branches(model, layers, fitting.sums, before=fitting.before),
            rescaled(model, plan, refit.norms, fitting.passes.meet) as norms,
        ):
            fitting.passes.run({*layers, *norms})


def _layers_to_fit(model: nn.Module, plan: PruningPlan, targets: Mapping[str, Target]) -> list[str]:
    """Layers that lost inputs, and those after the first of them that samples determine well."""
    cut = {side.layer for side in plan if side.side == "in"}
    free = set(correctable_layers(model))

    def is_fitted(layer: str) -> bool:
        inputs = model.get_submodule(layer).get_parameter("weight")[0].numel()
        return layer in cut or (layer in free and targets[layer].num_rows >= ROWS * inputs)

    changed = dropwhile(lambda layer: layer not in cut, targets)  # in the order of the forward pass
    return [layer for layer in changed if is_fitted(layer)]


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

    def before(self, layer: str, module: nn.Module, given: Tensor) -> None:
        """A layer is about to run."""
        if self.passes.is_settled(layer):
            return
        target = self._refit.targets[layer]
        part = target.parts[self.passes.current]
        rows = partial(input_rows, module, given, part.shape, part.rows)
        if target.summed:
            self._waiting[self.passes.current][layer] = (given, rows())
        else:
            settle = partial(self._settle, layer, module)
            self.passes.meet(layer, lambda: self._tell(layer, module, rows(), 0.0), settle)

    def add(self, branch: Branch, own: Tensor, other: Tensor) -> None:
        """Something is about to be added to the output of a layer."""
        layer, module, waiting = branch.layer, branch.module, self._waiting[self.passes.current]
        if layer not in waiting:
            return
        given = waiting[layer][0]

        def tell() -> None:
            # Nobody holds the rows while the pass waits.
            _, rows = waiting.pop(layer)
            target = self._refit.targets[layer]
            beside = output_rows(module, other, target.parts[self.passes.current].rows)
            self._tell(layer, module, rows, branch.in_own_units(beside, target.scale))

        # While torch hands a function to a mode, the mode is not in force.
        if not self.passes.meet(layer, tell, partial(self._settle, layer, module), self.sums):
            return
        # Some samples at a time: the sum is where most maps are alive. Past the hooks, which are for the
        # network's own calls.
        parts = in_blocks(given)
        for part, place in zip(parts, torch.split(own, len(parts[0])), strict=True):
            refitted = module.forward(part)
            place.copy_(refitted if branch.norm is None else branch.norm.forward(refitted))

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
        weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
        new, shift = self._fits.pop(layer).solve()
        weight.copy_(new.view_as(weight))
        if bias is not None and shift is not None:
            bias.copy_(shift)
        self._advance()


class _EveryOther(Sequence[tuple[Any, ...]]):
    """Every other sample of some batches, one batch at a time, wherever the others rest.

    Args:
        batches: arguments of forward, by batch.
        places: of the batches.
        firsts: the first sample of each, 0 or 1.
    """

    def __init__(
        self, batches: Sequence[tuple[Any, ...]], places: Sequence[int], firsts: Sequence[int]
    ) -> None:
        self._batches = batches
        self._places = places
        self._firsts = firsts

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: Any) -> Any:
        first = self._firsts[place]
        return tree_map(
            lambda leaf: leaf[first::2] if isinstance(leaf, Tensor) else leaf,
            self._batches[self._places[place]],
        )
