"""Cutting a network in place: all of a plan, or nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from acsp_lightning.structure.layer_cut import LayerCut, layer_cut, slice_tensor
from acsp_lightning.structure.layers import is_depthwise, is_producer, refusal, side_width
from acsp_lightning.structure.plan import PruningPlan
from acsp_lightning.structure.records import record_sizes
from acsp_lightning.structure.sides import Side, parsed


@dataclass(frozen=True, slots=True, eq=False)
class SlicedParameter:
    """A parameter that a cut made smaller.

    Attributes:
        name: qualified name.
        parameter: the same object as before the cut, so that whoever holds it (optimizers, lists for
            penalties or clipping) holds the smaller one; it has no gradient.
        old: its data before the cut, untouched.
        cuts: (dimension, kept indices) in the order in which the data was sliced.
    """

    name: str
    parameter: nn.Parameter
    old: torch.Tensor
    cuts: tuple[tuple[int, torch.Tensor], ...]

    def slice(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, of the shape of the old data, cut as the parameter was."""
        for dim, kept in self.cuts:
            tensor = slice_tensor(tensor, dim, kept)
        return tensor


def apply_plan(model: nn.Module, plan: PruningPlan) -> tuple[SlicedParameter, ...]:
    """Cut ``model`` in place, all of ``plan`` or nothing.

    Needs no example input and no optimizer. Parameters stay the same objects; where an optimizer has
    state for them, pass the result to
    :func:`acsp_lightning.structure.optimizer.slice_optimizer_state`.

    Args:
        model: a network whose layers have the widths that the plan was made for.
        plan: kept indices per layer side.

    Returns:
        One entry for every parameter that became smaller.

    Raises:
        ValueError: if the plan does not fit the model: says which layer, the width found and the
            width expected. The model is untouched then.
    """
    check_plan(model, plan)
    with reversible_cut(model, plan) as sliced:
        return sliced


def check_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Raise the ``ValueError`` that :func:`apply_plan` would raise; change nothing."""
    modules = dict(model.named_modules())
    for cut in plan:
        module = modules.get(cut.layer)
        if module is None:
            raise ValueError(f"the plan cuts {cut.layer!r}, which {type(model).__name__} does not have.")
        kind, name, _ = parsed(cut.side)
        reason = refusal(module) if kind == "layer" else None
        if reason is not None:
            raise ValueError(f"the plan cuts {cut.layer!r}, but {reason}.")
        if kind != "layer" and not hasattr(module, name):
            raise ValueError(f"the plan cuts {name!r} of {cut.layer!r}, which does not have it.")
        if cut.side == "in" and (not is_producer(module) or is_depthwise(module)):
            raise ValueError(
                f"the plan cuts {cut.layer!r} on its in side, but it passes its channels on one by one: "
                "its only side is 'out'."
            )
        width = side_width(module, cut.side)
        if width != cut.width:
            raise ValueError(
                f"the plan was made for a {cut.layer!r} with {cut.width} channels on its {cut.side} "
                f"side; this one has {width}. Apply plans in the order in which they were made."
            )


def parameters_to_slice(model: nn.Module, plan: PruningPlan) -> list[nn.Parameter]:
    """The parameters that a cut would make smaller: it reads their data and replaces it.

    Args:
        model: checked against the plan by the caller.
        plan: what to keep.
    """
    modules = dict(model.named_modules())
    cuts = _layer_cuts(modules, plan)
    found = [getattr(modules[layer], name) for layer, cut in cuts.items() for name, _, _ in cut.slices]
    return [tensor for tensor in found if isinstance(tensor, nn.Parameter)]


@contextmanager
def reversible_cut(
    model: nn.Module, plan: PruningPlan, *, keep: bool = True
) -> Iterator[tuple[SlicedParameter, ...]]:
    """Cut ``model`` for the body; put it back if the body raises, or at the end unless ``keep``.

    The way back is exact: every parameter gets back its data and its gradient, and the very buffers of
    before stand in their places.

    Args:
        model: checked against the plan by the caller.
        plan: what to keep.
        keep: whether the cut stays when the body ends well.
    """
    modules = dict(model.named_modules())
    cuts = _layer_cuts(modules, plan)
    touched = [modules[layer] for layer in cuts]
    before = [_snapshot(modules[layer], cut) for layer, cut in cuts.items()]
    stays = False
    try:
        sliced = _cut(modules, cuts)
        yield sliced
        stays = keep
    finally:
        if not stays:
            for module, state in zip(touched, before, strict=True):
                _restore(module, state)
    # Not for a trial: whoever holds the accumulators goes on with them.
    for entry in sliced:
        if stays:
            set_data(entry.parameter, entry.parameter.data)
    for module, state in zip(touched, before, strict=True):
        if stays:
            record_sizes(module, state.unseen)


@dataclass(frozen=True, slots=True)
class _State:
    """What a cut changes in one layer."""

    parameters: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor | None]]
    buffers: dict[str, torch.Tensor | None]
    sizes: dict[str, object]
    unseen: dict[str, object]


def kept_by_layer(plan: PruningPlan) -> dict[str, dict[Side, tuple[int, ...]]]:
    """What every side of every module keeps."""
    kept: dict[str, dict[Side, tuple[int, ...]]] = {}
    for cut in plan:
        kept.setdefault(cut.layer, {})[cut.side] = cut.kept
    return kept


def _layer_cuts(modules: Mapping[str, nn.Module], plan: PruningPlan) -> dict[str, LayerCut]:
    return {layer: layer_cut(modules[layer], kept) for layer, kept in kept_by_layer(plan).items()}


def _snapshot(module: nn.Module, cut: LayerCut) -> _State:
    return _State(
        [(p, p.data, p.grad) for p in module.parameters(recurse=False)],
        dict(module._buffers),
        {name: getattr(module, name) for name in cut.sizes},
        {name: getattr(module, name) for name in cut.unseen},
    )


def _restore(module: nn.Module, state: _State) -> None:
    for parameter, data, gradient in state.parameters:
        parameter.data = data
        parameter.grad = gradient
    module._buffers.update(state.buffers)
    vars(module).update(state.sizes)


def _cut(modules: dict[str, nn.Module], cuts: Mapping[str, LayerCut]) -> tuple[SlicedParameter, ...]:
    sliced = []
    # Data made under inference_mode could never be trained.
    with torch.inference_mode(False), torch.no_grad():
        for layer, cut in cuts.items():
            by_tensor: dict[str, list[tuple[int, torch.Tensor]]] = {}
            for name, dim, kept in cut.slices:
                by_tensor.setdefault(name, []).append((dim, kept))
            for name, slices in by_tensor.items():
                tensor = getattr(modules[layer], name)
                old = tensor.data if isinstance(tensor, nn.Parameter) else tensor
                new = old
                for dim, kept in slices:
                    new = slice_tensor(new, dim, kept)
                if isinstance(tensor, nn.Parameter):
                    tensor.grad, tensor.data = None, new
                    full = f"{layer}.{name}".lstrip(".")
                    sliced.append(SlicedParameter(full, tensor, old, tuple(slices)))
                else:
                    setattr(modules[layer], name, new)
            vars(modules[layer]).update(cut.sizes)
    return tuple(sliced)


def set_data(parameter: nn.Parameter, data: torch.Tensor) -> None:
    """Let a parameter hold data of another shape, without a gradient; it stays the same object."""
    parameter.grad = None
    # An accumulator of its gradients that is still alive (DistributedDataParallel holds them) expects
    # the old shape. Torch makes a new one only when the type of the data changes: it does in between.
    between = torch.float32 if parameter.dtype == torch.float16 else torch.float16
    parameter.data = parameter.data.new_empty(0, dtype=between)
    parameter.data = data
