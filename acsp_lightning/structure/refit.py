"""Recovery without training, layer by layer: consumers learn to give again what they gave before.

Folding what removed channels said into the layers that read them corrects every layer by itself; what
is left of the error grows from layer to layer. Here each consumer is fitted, in the order of the
forward pass, to the outputs of the uncut network, on the inputs that it really gets in the cut network.
Where its output is added to something else (a residual sum), it also makes up for the error of that;
of two consumers that are added to each other, one does.

All samples run through the network in one pass, and a hook before every consumer fits it at the moment
its inputs are complete: nothing needs to be known of what lies between.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from acsp_lightning.functional import refit_weight
from acsp_lightning.functional.precision import in_blocks, wide
from acsp_lightning.progress import step
from acsp_lightning.structure.forward import evaluation_state, run_forward
from acsp_lightning.structure.groups import Norm
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.rescaling import NormTarget, noted, rescaled
from acsp_lightning.structure.unfold import gives_rows, has_rows, input_rows, output_rows, random_rows

# Positions of each sample at which a convolution is compared: on a ResNet-56 as good as 64.
POSITIONS = 32
ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
# BatchNorm channels of less than this share of the largest scale cannot make up for anything.
LEAST_SCALE = 1e-3


@dataclass(frozen=True, slots=True)
class Target:
    """What a consumer of the uncut network gave.

    Attributes:
        shape: of its output.
        rows: at which samples and positions, int64, (S,).
        outputs: what it gave there, (S, O), together with what was added to it, in its own units.
        summed: whether something was added to it.
        scale: what the BatchNorm that reads it, if one does, multiplies it by, (O,).
    """

    shape: torch.Size
    rows: Tensor
    outputs: Tensor
    summed: bool = False
    scale: Tensor | None = None

    def halved(self) -> "Target":
        """The same for every other sample."""
        positions = self.shape.numel() // (self.shape[0] * self.outputs.shape[1])
        sample, position = self.rows // positions, self.rows % positions
        taken = sample % 2 == 0
        return replace(
            self,
            shape=torch.Size(((self.shape[0] + 1) // 2, *self.shape[1:])),
            rows=(sample // 2 * positions + position)[taken],
            outputs=self.outputs[taken],
        )

    @property
    def power(self) -> float:
        """Variance of the output together with what is added to it, summed over channels, scaled."""
        spread = wide(self.outputs).var(0, correction=0)
        return float((spread if self.scale is None else spread * wide(self.scale).square()).sum())


@dataclass(frozen=True, slots=True)
class Refit:
    """What consumers are fitted to.

    Attributes:
        inputs: arguments of ``forward``, for all samples at once.
        targets: what consumers of the uncut network gave for them, by layer.
        norms: what layers gave that use statistics of their channels, by layer.
    """

    inputs: tuple[Any, ...]
    targets: Mapping[str, Target]
    norms: Mapping[str, NormTarget] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples, or of rows where a layer is not given one for each; 0 without targets."""
        return min((target.shape[0] for target in self.targets.values()), default=0)

    def halved(self) -> "Refit":
        """The same with every other sample, for a fit in half the time.

        All of them, where a layer is not given one map or row of features for each sample.
        """
        tensors = [leaf for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor)]
        if {len(leaf) for leaf in tensors} != {target.shape[0] for target in self.targets.values()}:
            return self
        return Refit(
            tree_map(lambda leaf: leaf[::2] if isinstance(leaf, Tensor) else leaf, self.inputs),
            {layer: target.halved() for layer, target in self.targets.items()},
            self.norms,
        )


@dataclass(frozen=True, slots=True)
class _Branch:
    """A tensor that is a consumer's output, or what one BatchNorm made of it.

    Only as long as its version is the same: an activation may have been applied in place.
    """

    layer: str
    module: nn.Module
    version: int
    norm: nn.Module | None = None

    @property
    def scale(self) -> Tensor | None:
        """What the BatchNorm multiplies channels by, (O,); None without one."""
        if not isinstance(self.norm, _BatchNorm) or self.norm.running_var is None:
            return None
        scale = (self.norm.running_var + self.norm.eps).rsqrt()
        return scale if self.norm.weight is None else scale * self.norm.weight

    def in_own_units(self, rows: Tensor, uncut: Tensor | None = None) -> Tensor:
        """Rows of something that is added to the tensor, as the consumer would have to give them.

        Channels whose scale is tiny beside those of the ``uncut`` network make up for nothing.
        """
        scale = self.scale
        if scale is None:
            return rows
        usable = scale.abs() > LEAST_SCALE * (scale if uncut is None else uncut).abs().max()
        return torch.where(usable, rows / torch.where(usable, scale, 1.0), 0.0)


class _Sums(TorchFunctionMode):
    """Calls back before two tensors of one shape are added, one of them being a branch.

    Of two branches the one counts that the other is not made of; if neither is, the left one.
    """

    def __init__(self, found: Callable[[_Branch, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._found = found
        self._branches = WeakIdKeyDictionary()
        self._sources = WeakIdKeyDictionary()  # layers that a tensor was made of

    def note(self, branch: _Branch, output: Tensor) -> None:
        """Take ``output`` for a branch."""
        self._branches[output] = branch
        self._sources[output] = self._made_of(output) | {branch.layer}

    def branch(self, tensor: Tensor) -> _Branch | None:
        """The branch that a tensor is, unless it was changed in place since."""
        branch: _Branch | None = self._branches.get(tensor)  # type: ignore[no-untyped-call]
        return branch if branch is not None and branch.version == tensor._version else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in ADDITIONS and not kwargs and len(args) == 2:
            self._add(*args)
        result = func(*args, **(kwargs or {}))
        sources = frozenset[str]().union(*map(self._made_of, tree_leaves((args, kwargs))))
        if sources:
            # What works in place and returns nothing changes its first argument.
            for leaf in tree_leaves(args[:1] if result is None else result):
                if isinstance(leaf, Tensor):
                    self._sources[leaf] = sources
        return result

    def _add(self, left: Any, right: Any) -> None:
        if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.shape != right.shape:
            return
        for own, other in ((left, right), (right, left)):
            branch = self.branch(own)
            # What is made of the output itself cannot be made up for by it.
            if branch is not None and branch.layer not in self._made_of(other):
                self._found(branch, own, other)
                return

    def _made_of(self, leaf: Any) -> frozenset[str]:
        if not isinstance(leaf, Tensor):
            return frozenset()
        sources: frozenset[str] = self._sources.get(leaf, frozenset())  # type: ignore[no-untyped-call]
        return sources


def prepare_refit(
    model: nn.Module,
    layers: Iterable[str],
    inputs: tuple[Any, ...],
    seed: int = 0,
    norms: Iterable[Norm] = (),
) -> Refit:
    """Note what the consumers of an uncut network give.

    Args:
        model: the uncut network; run once, in eval mode.
        layers: the consumers; passed over are those that are no product of patches and a weight
            (transposed convolutions, layers with a forward of their own).
        inputs: arguments of ``forward``, for all samples at once.
        seed: of the choice of positions.
        norms: layers that use statistics of channels.

    Returns:
        The samples with a target for every layer.
    """
    targets: dict[str, Target] = {}

    def seen(branch: _Branch, given: Tensor, output: Tensor) -> None:
        if branch.norm is None:
            rows = random_rows(branch.module, output, POSITIONS, seed + len(targets))
            if gives_rows(branch.module, given, output, rows[:POSITIONS]):
                outputs = output_rows(branch.module, output)[rows]
                targets[branch.layer] = Target(output.shape, rows, outputs)
        elif branch.layer in targets:
            targets[branch.layer] = replace(targets[branch.layer], scale=branch.scale)

    def add(branch: _Branch, own: Tensor, other: Tensor) -> None:
        target = targets.get(branch.layer)
        if target is not None and own.shape == target.shape and not target.summed:
            beside = branch.in_own_units(output_rows(branch.module, other)[target.rows])
            # In half precision the sum would lose what the fit is about.
            total = beside.to(torch.promote_types(beside.dtype, torch.float32)) + target.outputs
            targets[branch.layer] = replace(target, outputs=total, summed=True)

    with _watched(model, layers, _Sums(add), after=seen), noted(model, norms) as found:
        run_forward(model, inputs)
    return Refit(inputs, targets, found)


def refit_consumers(model: nn.Module, plan: PruningPlan, refit: Refit) -> None:
    """Fit the layers whose inputs a plan has cut, in place, to what they gave before.

    Norms over the channels that stay are rescaled on the way.

    Args:
        model: the cut network.
        plan: the cut.
        refit: what :func:`prepare_refit` found before the cut.
    """
    targets = refit.targets
    waiting: dict[str, tuple[Tensor, Tensor]] = {}

    def fit(layer: str, module: nn.Module, rows: Tensor, added: Tensor | float = 0.0) -> None:
        wanted = targets[layer].outputs
        kept = plan.kept(layer, "out")
        if kept is not None:
            wanted = wanted[:, torch.tensor(kept)]
        weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
        new, shift = refit_weight(rows, wanted - added, weight.flatten(1), bias)
        weight.copy_(new.view_as(weight))
        if bias is not None and shift is not None:
            bias.copy_(shift)
        advance()

    def before(layer: str, module: nn.Module, given: Tensor) -> None:
        target = targets[layer]
        rows = input_rows(module, given, target.shape, target.rows)
        if target.summed:
            waiting[layer] = (given, rows)
        else:
            fit(layer, module, rows)

    def add(branch: _Branch, own: Tensor, other: Tensor) -> None:
        layer, module = branch.layer, branch.module
        if layer not in waiting:
            return
        given, rows = waiting.pop(layer)
        beside = output_rows(module, other)[targets[layer].rows]
        fit(layer, module, rows, branch.in_own_units(beside, targets[layer].scale))
        # Some samples at a time: the sum is where most maps are alive. Past the hooks, which are for the
        # network's own calls.
        parts = in_blocks(given)
        for part, place in zip(parts, torch.split(own, len(parts[0])), strict=True):
            refitted = module.forward(part)
            place.copy_(refitted if branch.norm is None else branch.norm.forward(refitted))

    layers = [cut.layer for cut in plan if cut.side == "in" and cut.layer in targets]
    with (
        step("Refitting layers", len(layers)) as advance,
        _watched(model, layers, _Sums(add), before=before),
        rescaled(model, plan, refit.norms),
    ):
        run_forward(model, refit.inputs)


@contextmanager
def _watched(
    model: nn.Module,
    layers: Iterable[str],
    sums: _Sums,
    before: Callable[[str, nn.Module, Tensor], None] | None = None,
    after: Callable[[_Branch, Tensor, Tensor], None] | None = None,
) -> Iterator[None]:
    """Hooks on consumers, and on the sums that they write into.

    Args:
        model: run by the body, in eval mode.
        layers: names of the consumers.
        sums: is told of all branches.
        before: called with the name, the layer and what it is given.
        after: called with every branch, what its layer or norm was given, and what that gave.
    """
    handles: list[RemovableHandle] = []

    def hook_in(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if before is not None:
                before(layer, module, args[0] if args else kwargs["input"])

        return hook

    def note(branch: _Branch, given: Tensor, output: Tensor) -> None:
        if after is not None:
            after(branch, given, output)
        sums.note(branch, output)

    def hook_out(layer: str) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> None:
            given = args[0] if args else kwargs["input"]
            note(_Branch(layer, module, output._version), given, output)

        return hook

    def hook_norm(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        source = sums.branch(args[0]) if args else None
        # A norm of the batch scales by what it is given.
        if source is not None and source.norm is None and module.running_var is not None:
            branch = _Branch(source.layer, source.module, output._version, module)
            note(branch, args[0], output)

    with evaluation_state(model):
        try:
            for layer in layers:
                module = model.get_submodule(layer)
                if has_rows(module):
                    handles.append(module.register_forward_pre_hook(hook_in(layer), with_kwargs=True))
                    handles.append(module.register_forward_hook(hook_out(layer), with_kwargs=True))
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    handles.append(module.register_forward_hook(hook_norm))
            with sums:
                yield
        finally:
            for handle in handles:
                handle.remove()
