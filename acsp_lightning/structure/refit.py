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
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, dropwhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

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
from acsp_lightning.structure.targets import Target, Targets, join_parts
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

    def thinned(self, step: int) -> "Refit":
        """The same with every ``step``-th sample, for a fit in less time; of norms and power, of all.

        Batches are joined, to no more samples than the largest has. Where samples cannot be told apart,
        or what is no sample differs between batches, every ``step``-th batch is left.
        """
        counts = self._sample_counts()
        if counts is None:
            targets = {
                layer: replace(target, parts=target.parts[::step])
                for layer, target in self.targets.items()
            }
            return replace(self, inputs=self.inputs[::step], targets=targets)
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

        targets = {layer: thin(target) for layer, target in self.targets.items()}
        return replace(self, inputs=_Thinned(self.inputs, joined, firsts, step), targets=targets)

    def _sample_counts(self) -> list[int] | None:
        """Samples by batch; None where not every argument and layer has a row or map for each.

        Neither where batches differ in more than their samples.
        """
        counts, kinds = [], set()
        for place, batch in enumerate(self.inputs):
            leaves, structure = tree_flatten(batch)
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            rows = {target.parts[place].shape[0] for target in self.targets.values()}
            if {leaf.shape[:1] for leaf in tensors} != {torch.Size([count]) for count in rows}:
                return None
            counts.append(len(tensors[0]))
            kinds.add((str(structure), *map(_kind_of, leaves)))
        maps = {layer: {part.shape[1:] for part in t.parts} for layer, t in self.targets.items()}
        is_one_kind = len(kinds) <= 1 and all(len(found) <= 1 for found in maps.values())
        return counts if is_one_kind else None


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
